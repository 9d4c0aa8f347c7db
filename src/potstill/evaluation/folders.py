"""The folders that `compare` is given: of `evaluate`, with many runs, or of `finetune`, with one each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from potstill.errors import PotstillError
from potstill.evaluation.results import PLAN, Plan, load_results
from potstill.finetuning.result import RESULTS, RunResult

Key = tuple[str, str, int]
"""Model, task and seed."""


def read_folders(words: Sequence[str]) -> tuple[Plan, list[RunResult]]:
    """Read folders of results, as one plan and the runs that are there.

    A folder of `evaluate` brings its models by their names, in its own order. A folder of `finetune` is one run of a
    model that is called like the folder, or as NAME=FOLDER says. Folders of one name are tasks and seeds of one model.

    Args:
        words: folders, or NAME=FOLDER.

    Raises:
        PotstillError: there is no such folder, it holds no results, a file of it is damaged, or two folders hold the
            same model, task and seed.
    """
    if not words:
        raise PotstillError("RESULTS is missing: name folders that potstill evaluate or potstill finetune wrote.")
    found = _Found()
    for word in words:
        name, folder = _named(word)
        if (folder / PLAN).is_file():
            if name is not None:
                raise PotstillError(
                    f"{word}: {folder} is of potstill evaluate and names its models itself: leave out {name}=."
                )
            plan, runs = load_results(folder)
            if len(words) == 1:
                return plan, runs
            found.add_evaluation(folder, plan, runs)
        else:
            found.add_run(folder, name or folder.resolve().name, _run_in(folder))
    return found.plan(), list(found.runs.values())


def _named(word: str) -> tuple[str | None, Path]:
    """Return the name that is given, if one is, and the folder."""
    folder = Path(word).expanduser()
    name, equals, path = word.partition("=")
    if equals and not folder.exists():  # the name of a folder may have such a sign in it
        if not name or not path:
            raise PotstillError(f"{word!r} is not NAME=FOLDER, as in student=out/student-sst2.")
        return name, Path(path).expanduser()
    return None, folder


def _run_in(folder: Path) -> RunResult:
    if not folder.is_dir():
        raise PotstillError(f"There is no folder {folder}: name one that potstill evaluate or potstill finetune wrote.")
    if not (folder / RESULTS).is_file():
        raise PotstillError(
            f"{folder} is not a folder of results: it has no {PLAN}, which potstill evaluate writes, and no {RESULTS}, "
            "which potstill finetune writes."
        )
    return RunResult.of_folder(folder)


@dataclass
class _Found:
    """What the folders hold, in their order.

    Attributes:
        models: name → folder or hub name.
        tasks: names.
        absent: task → why an evaluation had no data of it.
        seeds: of all runs.
        runs: by model, task and seed.
        sources: where each run is from.
    """

    models: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    runs: dict[Key, RunResult] = field(default_factory=dict)
    sources: dict[Key, Path] = field(default_factory=dict)

    def add_evaluation(self, folder: Path, plan: Plan, runs: Sequence[RunResult]) -> None:
        """Add what an evaluation planned, and those of its runs that it planned."""
        for name, path in plan.models:
            self.models.setdefault(name, path)
        self.tasks |= dict.fromkeys(plan.tasks)
        self.absent |= plan.absent
        self.seeds |= {*plan.seeds}
        planned = set(plan.runs())
        for run in runs:
            if (run.model, run.task, run.seed) in planned:
                self._add(folder, run)

    def add_run(self, folder: Path, name: str, run: RunResult) -> None:
        """Add a run of a model that is called by a name."""
        self.models.setdefault(name, run.model_path)
        self.tasks.setdefault(run.task)
        self.seeds.add(run.seed)
        self._add(folder, replace(run, model=name))

    def _add(self, folder: Path, run: RunResult) -> None:
        key = run.model, run.task, run.seed
        if key in self.runs:
            raise PotstillError(
                f"{self.sources[key]} and {folder} both hold {run.model} on {run.title} with seed {run.seed}: give "
                f"each a name of its own, as in one={self.sources[key]} other={folder}."
            )
        self.runs[key], self.sources[key] = run, folder

    def plan(self) -> Plan:
        """Return the plan that would have led to these runs."""
        there = {run.task for run in self.runs.values()}
        absent = {task: why for task, why in self.absent.items() if task not in there}
        return Plan([*self.models.items()], [*self.tasks], absent, sorted(self.seeds))
