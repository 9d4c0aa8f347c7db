"""The files of an evaluation: a plan, and one JSON file for each run, `MODEL/TASK/seed-SEED.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.finetuning.result import RunResult, run_path
from potstill.records import read_record, write_record
from potstill.report.markdown import visible

PLAN = "plan.json"
FORMAT_VERSION = 3
"""The version of the plan's format. Format 1 has no `untrained`, and format 2 has no `folders`."""

ONE_RUN = 0
"""The number that stands for a seed where nothing is trained. A second run would have the same result."""

__all__ = ["ONE_RUN", "PLAN", "Plan", "RunResult", "another_run", "load_results", "option_differences", "run_path"]


@dataclass(frozen=True)
class Plan:
    """The runs of an evaluation: every model on every task that has data, with every seed.

    Attributes:
        models: (name, folder or hub name), in the order of the tables; the first is the reference.
        tasks: names, in the order of the tables.
        absent: task → why it has no data.
        seeds: one run of each model and task for each seed; empty if all tasks are in `untrained`.
        untrained: tasks that models are scored on as they are, without fine-tuning. Each model has one run of them,
            with `ONE_RUN` in the place of its seed. None means that there are none.
        folders: name of a model → all of its folders, for a model that was trained with several seeds. It has a run of
            each folder on the tasks in `untrained`; the places of the folders, from 0, are its seeds.
    """

    models: list[tuple[str, str]]
    tasks: list[str]
    absent: dict[str, str]
    seeds: list[int]
    untrained: list[str] | None = None
    folders: dict[str, list[str]] | None = None

    def save(self, folder: Path) -> Path:
        """Write `plan.json` and return its path.

        Raises:
            PotstillError: the plan is not valid (see `check`), or the file cannot be written.
        """
        self.check()
        write_record(folder / PLAN, self, FORMAT_VERSION)
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
            raise PotstillError(
                f"{folder} is not a folder of results: it has no {PLAN}, which potstill evaluate writes."
            )
        record = read_record(folder / PLAN, cls, FORMAT_VERSION, "the plan of an evaluation")
        if any(len(model) != 2 for model in record["models"]):
            raise PotstillError(f"{folder / PLAN} is damaged: 'models' must be pairs of a name and a path.")
        plan = cls(**record | {"models": [(name, path) for name, path in record["models"]]})
        try:
            plan.check()
        except PotstillError as error:
            raise PotstillError(f"{folder / PLAN} is damaged: {error}") from error
        return plan

    def check(self) -> None:
        """Check that every run has a file of its own.

        Raises:
            PotstillError: there is nothing to run, a name or seed occurs twice, or a name is not valid for a folder.
        """
        names = [name for name, _ in self.models]
        trained = set(self.tasks) - {*(self.untrained or ())}
        for what, values in (("model", names), ("task", self.tasks), ("seed", self.seeds)):
            if not values and (what != "seed" or trained):
                raise PotstillError(f"Name at least one {what} to evaluate.")
            # Some file systems do not distinguish upper and lower case.
            folded = [str(value).casefold() for value in values]
            repeated = next((value for value in values if folded.count(str(value).casefold()) > 1), None)
            if repeated is not None:
                raise PotstillError(f"The {what} {repeated!r} occurs twice: give each a name of its own.")
        for name in (*names, *self.tasks):
            if not name or name.startswith(".") or name == PLAN or visible(name) != name or "/" in name or "\\" in name:
                raise PotstillError(f"{name!r} cannot be the name of a folder: choose another.")

    @property
    def present(self) -> list[str]:
        """Tasks that have data."""
        return [task for task in self.tasks if task not in self.absent]

    @property
    def trained(self) -> list[str]:
        """Tasks that have data and that models are fine-tuned on."""
        return [task for task in self.present if task not in (self.untrained or ())]

    def seeds_of(self, task: str, model: str) -> list[int]:
        """Return the seeds of a model's runs of a task; `ONE_RUN` alone if nothing is trained and it has one folder."""
        if task not in (self.untrained or ()):
            return self.seeds
        return [*range(ONE_RUN, ONE_RUN + len((self.folders or {}).get(model, [""])))]

    @property
    def most_seeds(self) -> int:
        """The largest number of seeds of a model; 0 if nothing is trained and each model has one folder."""
        return max([len(self.seeds), *map(len, (self.folders or {}).values())])

    def runs(self) -> list[tuple[str, str, int]]:
        """Return model, task and seed of every planned run."""
        return [
            (name, task, seed) for name, _ in self.models for task in self.present for seed in self.seeds_of(task, name)
        ]


def option_differences(planned: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a message for each option of a result that differs from the planned run's."""
    planned = json.loads(json.dumps(planned))  # as it is written: a tuple becomes a list
    return [
        f"{name} was {found.get(name, 'not given')} and is {planned.get(name, 'not given')}"
        for name in sorted({*planned, *found})
        if planned.get(name) != found.get(name)
    ]


def another_run(file: Path, differing: Sequence[str]) -> PotstillError:
    """Return the error for a result that is not the planned run's; `differing` says in what it differs."""
    return PotstillError(
        f"{file} is of another run: {'; '.join(differing)}. Name another --output_dir, give the options of that run, "
        "or delete this file."
    )


def load_results(folder: str | Path) -> tuple[Plan, list[RunResult]]:
    """Read a folder of results.

    Returns:
        The plan, and the results: first those of planned runs, in the plan's order, then all others.

    Raises:
        PotstillError: there is no such folder, it holds no results, or one of its files is damaged or has the path of
            another run. The message names the file.
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
