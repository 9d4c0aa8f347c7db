"""Reads the folders for `compare`: folders of `evaluate` hold many runs, those of `finetune` hold one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from potstill.errors import PotstillError
from potstill.evaluation.results import PLAN, Plan, load_results
from potstill.finetuning.result import RESULTS, RunResult

Key = tuple[str, str, int]
"""Model, task and seed."""


def read_folders(arguments: Sequence[str]) -> tuple[Plan, list[RunResult]]:
    """Read folders of results and return one plan and the runs.

    Models in a folder of `evaluate` keep their names and order. A folder of `finetune` holds one run of a model, which
    has the folder's name, or NAME if given as NAME=FOLDER. Runs under the same name are runs of one model.

    Args:
        arguments: folders, or NAME=FOLDER.

    Raises:
        PotstillError: there is no such folder, it holds no results, one of its files is damaged, or two folders hold
            the same model, task and seed.
    """
    if not arguments:
        raise PotstillError("RESULTS is missing: name folders that potstill evaluate or potstill finetune wrote.")
    merged = _Merged()
    for argument in arguments:
        name, folder = _split(argument)
        if (folder / PLAN).is_file():
            if name is not None:
                raise PotstillError(
                    f"{argument}: {folder} is of potstill evaluate and names its models itself: leave out {name}=."
                )
            plan, runs = load_results(folder)
            if len(arguments) == 1:
                return plan, runs
            merged.add_evaluation(folder, plan, runs)
        else:
            merged.add_run(folder, name or folder.resolve().name, _run_in(folder))
    return merged.plan(), list(merged.runs.values())


def _split(argument: str) -> tuple[str | None, Path]:
    """Return the name, None if none is given, and the folder."""
    folder = Path(argument).expanduser()
    name, equals, path = argument.partition("=")
    if equals and not folder.exists():  # the name of a folder may contain an equals sign
        if not name or not path:
            raise PotstillError(f"{argument!r} is not NAME=FOLDER, as in student=out/student-sst2.")
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
class _Merged:
    """The contents of all folders, in the order of the folders.

    Attributes:
        models: name → folder or hub name.
        tasks: names, as the keys of a dictionary.
        absent: task → why an evaluation had no data for it.
        untrained: tasks that models are scored on as they are.
        seeds: the seeds of all other runs.
        runs: (model, task, seed) → result.
        sources: (model, task, seed) → the folder of results that holds it.
        folders: see `Plan`.
    """

    models: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    untrained: dict[str, None] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    runs: dict[Key, RunResult] = field(default_factory=dict)
    sources: dict[Key, Path] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)

    def add_evaluation(self, folder: Path, plan: Plan, runs: Sequence[RunResult]) -> None:
        """Add the plan of an evaluation and its planned runs."""
        for name, path in plan.models:
            self.models.setdefault(name, path)
        self.tasks |= dict.fromkeys(plan.tasks)
        self.absent |= plan.absent
        self.untrained |= dict.fromkeys(plan.untrained or ())
        self.seeds |= {*plan.seeds}
        self.folders |= plan.folders or {}
        planned = set(plan.runs())
        for run in runs:
            if (run.model, run.task, run.seed) in planned:
                self._add(folder, run)

    def add_run(self, folder: Path, name: str, run: RunResult) -> None:
        """Add a run under a model's name."""
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
        for (model, task, seed), other in self.runs.items():
            both = other.scored_fingerprint and run.scored_fingerprint
            if (model, task) == key[:2] and both and other.scored_fingerprint != run.scored_fingerprint:
                raise PotstillError(
                    f"{self.sources[model, task, seed]} and {folder} both hold {model} on {run.title}, but were scored "
                    "on different rows, which have no common median: give each model a name of its own, or declare "
                    "each data set in a .yaml file with a name of its own."
                )
        self.runs[key], self.sources[key] = run, folder

    def plan(self) -> Plan:
        """Return the plan of an evaluation with these runs."""
        with_runs = {run.task for run in self.runs.values()}
        absent = {task: why for task, why in self.absent.items() if task not in with_runs}
        untrained, folders = [*self.untrained] or None, self.folders or None
        return Plan([*self.models.items()], [*self.tasks], absent, sorted(self.seeds), untrained, folders)
