"""What is kept of an evaluation: a plan, and one JSON file for each fine-tuning run, `MODEL/TASK/seed-SEED.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.errors import PotstillError
from potstill.finetuning.result import RunResult, run_path
from potstill.records import read_record, write_record
from potstill.report.markdown import visible

PLAN = "plan.json"
FORMAT_VERSION = 1
"""Of the plan."""

__all__ = ["PLAN", "Plan", "RunResult", "load_results", "run_path"]


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
            raise PotstillError(f"{folder} is not a folder of results: it has no {PLAN}; potstill evaluate makes one.")
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
