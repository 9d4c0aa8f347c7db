"""What is kept of an evaluation: a plan, and one JSON file for each fine-tuning run, `MODEL/TASK/seed-SEED.json`."""

from __future__ import annotations

import reprlib
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from potstill.errors import PotstillError
from potstill.files import write_text
from potstill.json_files import json_text, read_object
from potstill.report.markdown import visible

PLAN = "plan.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunResult:
    """One model, fine-tuned on one task with one seed, and scored.

    Attributes:
        model: the name that the user gave it, e.g. "student".
        model_path: the folder or hub name it was read from.
        task: as the command line knows it, e.g. "sst2".
        title: as papers print it, e.g. "SST-2".
        suite: "glue", "imdb", "squad" or "squad_v2".
        seed: of the new head, the order of the rows and dropout.
        score: the task's score, in percent.
        metrics: name → value, as the task's own scoring returns it; split → name → value where several are scored.
        teacher: the task model that soft targets came from (second distillation), None for plain fine-tuning.
        hyperparameters: what the run was trained with; the values that won where they were searched.
        versions: package → version.
        hardware: what it ran on, in words.
        seconds: part of the run → time; the parts do not overlap.
        rows: split → examples.
        data_fingerprint: of the task's rows as they were read, before any tokenizer.
        model_fingerprint: of the encoder's weights before fine-tuning.
        date: of its end, ISO 8601.
        searched: hyper-parameter → values tried; None if none was searched.
        bad_rows: split → rows left out because they could not be used; None in results of before they were counted.
    """

    model: str
    model_path: str
    task: str
    title: str
    suite: str
    seed: int
    score: float
    metrics: dict[str, float | dict[str, float]]
    teacher: str | None
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    hardware: str
    seconds: dict[str, float]
    rows: dict[str, int]
    data_fingerprint: str
    model_fingerprint: str
    date: str
    searched: dict[str, list[Any]] | None = None
    bad_rows: dict[str, int] | None = None

    def save(self, folder: Path) -> Path:
        """Write the run to its place in a folder of results, and return the file.

        Raises:
            PotstillError: a field is not what it should be (a score that is no number is no result), or the file
                cannot be written.
        """
        path = run_path(folder, self.model, self.task, self.seed)
        self.save_as(path)
        return path

    def save_as(self, path: Path) -> None:
        """Write the run to a file of any name; see `save`."""
        _write(path, self)

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read a run.

        Raises:
            PotstillError: the file cannot be read, is damaged, or is no run.
        """
        return cls(**_read(path, cls, "the result of a run"))


@dataclass(frozen=True)
class Plan:
    """What an evaluation set out to run: every model on every task that has data, with every seed.

    Attributes:
        models: (name, folder or hub name), in the order of the tables; the first is the reference.
        tasks: names, in the order of the tables.
        absent: task → why there is no data of it.
        seeds: of the runs.
    """

    models: list[tuple[str, str]]
    tasks: list[str]
    absent: dict[str, str]
    seeds: list[int]

    def save(self, folder: Path) -> Path:
        """Write `plan.json` and return it.

        Raises:
            PotstillError: the plan cannot be carried out (see `check`), or the file cannot be written.
        """
        self.check()
        _write(folder / PLAN, self)
        return folder / PLAN

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read `plan.json`.

        Raises:
            PotstillError: there is no such folder, it holds no results, or its plan is damaged.
        """
        if not folder.is_dir():
            raise PotstillError(f"There is no folder {folder}: name one that potstill evaluate wrote.")
        if not (folder / PLAN).is_file():
            raise PotstillError(f"{folder} is not a folder of results: it has no {PLAN}; potstill evaluate makes one.")
        record = _read(folder / PLAN, cls, "the plan of an evaluation")
        if any(len(model) != 2 for model in record["models"]):
            raise PotstillError(f"{folder / PLAN} is damaged: 'models' must be pairs of a name and a path.")
        plan = cls(**record | {"models": [(name, path) for name, path in record["models"]]})
        try:
            plan.check()
        except PotstillError as error:
            raise PotstillError(f"{folder / PLAN} is damaged: {error}") from error
        return plan

    def check(self) -> None:
        """Make sure that every run has a file of its own.

        Raises:
            PotstillError: there is nothing to run, something is named twice, or a name cannot be a folder's.
        """
        names = [name for name, _ in self.models]
        for what, values in (("model", names), ("task", self.tasks), ("seed", self.seeds)):
            if not values:
                raise PotstillError(f"Name at least one {what} to evaluate.")
            # Folders may not tell capitals from small letters.
            folded = [str(value).casefold() for value in values]
            twice = next((value for value in values if folded.count(str(value).casefold()) > 1), None)
            if twice is not None:
                raise PotstillError(f"The {what} {twice!r} is there twice: give each a name of its own.")
        for name in (*names, *self.tasks):
            if not name or name.startswith(".") or name == PLAN or visible(name) != name or "/" in name or "\\" in name:
                raise PotstillError(f"{name!r} cannot be the name of a folder: choose another.")

    @property
    def present(self) -> list[str]:
        """Tasks that have data."""
        return [task for task in self.tasks if task not in self.absent]

    def runs(self) -> list[tuple[str, str, int]]:
        """Return model, task and seed of every run planned."""
        return [(name, task, seed) for name, _ in self.models for task in self.present for seed in self.seeds]


def run_path(folder: Path, model: str, task: str, seed: int) -> Path:
    """Return where the result of a run is, or will be."""
    return folder / model / task / f"seed-{seed}.json"


def load_results(folder: str | Path) -> tuple[Plan, list[RunResult]]:
    """Read a folder of results.

    Returns:
        The plan, and the runs that are there: those planned first and in order, then any others.

    Raises:
        PotstillError: there is no such folder, it holds no results, or a file of it is damaged or in another's place;
            the file is named.
    """
    folder = Path(folder).expanduser()
    plan = Plan.load(folder)
    order = {run: number for number, run in enumerate(plan.runs())}
    runs = {}
    for path in sorted(folder.glob("[!.]*/[!.]*/seed-*.json")):
        run = RunResult.load(path)
        key = (run.model, run.task, run.seed)
        if run_path(folder, *key) != path:
            raise PotstillError(
                f"{path} is the result of {run.model} on {run.task} with seed {run.seed}, which belongs in "
                f"{run_path(folder, *key)}: move it there or delete it."
            )
        runs[key] = run
    return plan, sorted(runs.values(), key=lambda run: order.get((run.model, run.task, run.seed), len(order)))


def _write(path: Path, record: Any) -> None:
    values = asdict(record)
    _check(values, type(record), f"{path} cannot be written")
    write_text(path, json_text({"format_version": FORMAT_VERSION} | values, str(path)) + "\n")


def _read(path: Path, kind: type, what: str) -> dict[str, Any]:
    record = read_object(path, f"{what[0].upper()}{what[1:]}", "delete it and run it again")
    if not isinstance(record.get("format_version"), int):
        raise PotstillError(f"{path} is not {what}: it has no format_version; delete it or move it elsewhere.")
    version = record.pop("format_version")
    if version > FORMAT_VERSION:
        raise PotstillError(
            f"{path} was written in format {version} and this version of potstill knows formats up to "
            f"{FORMAT_VERSION}: upgrade potstill."
        )
    _check(record, kind, f"{path} is not {what}")
    return record


def _check(record: Mapping[str, Any], kind: type, wrong: str) -> None:
    """Make sure that a record has the fields of a dataclass, with values of their types and finite numbers."""
    hints = get_type_hints(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    names = list(defaults)
    for name, default in defaults.items():
        if name not in record:
            if default is None:  # a field that results of before it do not have
                continue
            raise PotstillError(f"{wrong}: it has no {name!r}.")
        if not _fits(record[name], hints[name]):
            raise PotstillError(f"{wrong}: {name!r} is {reprlib.repr(record[name])}.")
    unknown = [name for name in record if name not in names]
    if unknown:
        raise PotstillError(f"{wrong}: it has the unknown field {unknown[0]!r}.")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value that JSON can hold is of a type; tuples are lists there."""
    arguments = get_args(hint)
    if hint is Any:
        return True
    if get_origin(hint) in (types.UnionType, Union):
        return any(_fits(value, choice) for choice in arguments)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if get_origin(hint) in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        # A whole number may be beyond all floats, and JSON has those too.
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))
