"""Seeds → medians and ranges, tasks → macro score, models → retention; nothing where nothing was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.evaluation.results import Plan, RunResult
from potstill.tasks.glue import SUITE
from potstill.tasks.registry import title_of

MACRO_SUITE = SUITE  # a mean with IMDb or SQuAD in it would be comparable with nothing published
NOISE = "wnli"  # 71 development examples, and a majority class that few models beat


@dataclass(frozen=True)
class Scores:
    """Scores of one model, in percent: those on a task, or macro scores, each the mean over tasks with one seed.

    Attributes:
        by_seed: seed → score, of at least one.
    """

    by_seed: Mapping[int, float]

    @property
    def value(self) -> float:
        """The median over the seeds, which never lies outside their range."""
        return statistics.median(self.by_seed.values())


@dataclass(frozen=True)
class MacroColumn:
    """The macro score of all models.

    Attributes:
        title: of the column.
        tasks: what it is the mean over: the same for all models.
        of: model → its macro scores.
    """

    title: str
    tasks: tuple[str, ...]
    of: Mapping[str, Scores]


@dataclass(frozen=True)
class Comparison:
    """Models beside a reference.

    Attributes:
        plan: what was to be run.
        runs: those planned that are there, in the order of the plan.
        unplanned: results that are there but not in the plan; they count for nothing.
        reference: name of the model that the others are measured by.
        scores: (model, task) → scores, where there is a run.
        macros: none where fewer than two GLUE tasks are complete for all models.
    """

    plan: Plan
    runs: tuple[RunResult, ...]
    unplanned: tuple[RunResult, ...]
    reference: str
    scores: Mapping[tuple[str, str], Scores]
    macros: tuple[MacroColumn, ...]

    @property
    def models(self) -> list[str]:
        """Names, in the order of the plan."""
        return [name for name, _ in self.plan.models]

    @property
    def titles(self) -> dict[str, str]:
        """Task → as papers print it, of all tasks planned or absent; its name if there is no run of a task unknown."""
        known = {run.task: run.title for run in self.runs}
        every = dict.fromkeys([*self.plan.tasks, *self.plan.absent])
        return {task: known[task] if task in known else title_of(task) for task in every}

    def missing(self, model: str, task: str) -> list[int]:
        """Return the seeds planned of which there is no run."""
        scores = self.scores.get((model, task))
        return [seed for seed in self.plan.seeds if scores is None or seed not in scores.by_seed]


def compare_runs(plan: Plan, runs: Sequence[RunResult], reference: str | None = None) -> Comparison:
    """Put the runs of a plan side by side.

    Args:
        plan: what was to be run.
        runs: what is there.
        reference: name of a model; the first of the plan if None.

    Raises:
        PotstillError: the plan has no such model.
    """
    names = [name for name, _ in plan.models]
    if reference is None:
        reference = names[0]
    if reference not in names:
        raise PotstillError(f"There is no model {reference!r} to be the reference; there is {', '.join(names)}.")
    planned = set(plan.runs())
    mine = tuple(run for run in runs if (run.model, run.task, run.seed) in planned)
    by_cell: dict[tuple[str, str], dict[int, float]] = {}
    for run in mine:
        by_cell.setdefault((run.model, run.task), {})[run.seed] = run.score
    scores = {cell: Scores(by_seed) for cell, by_seed in by_cell.items()}
    return Comparison(
        plan=plan,
        runs=mine,
        unplanned=tuple(run for run in runs if (run.model, run.task, run.seed) not in planned),
        reference=reference,
        scores=scores,
        macros=_macros(plan, mine, scores),
    )


def retention(value: float, reference: float) -> float | None:
    """Return how much of a reference's score is kept, in percent; None where the reference is 0 or less."""
    return 100 * value / reference if reference > 0 else None


def beyond_spread(one: Scores, other: Scores) -> bool | None:
    """Return whether the ranges over seeds, ends included, have no point in common; None where one has one seed."""
    if min(len(one.by_seed), len(other.by_seed)) < 2:
        return None
    a, b = one.by_seed.values(), other.by_seed.values()
    return max(a) < min(b) or max(b) < min(a)


def chance_beyond_spread(seeds: int, others: int) -> float:
    """Return how likely `beyond_spread` is of two models that do not differ, 0 to 1.

    All orders of their scores are then equally likely, and in two of them each model keeps to its side. Equal scores
    only make it less likely.
    """
    return min(1.0, 2 / math.comb(seeds + others, seeds))


def _macros(plan: Plan, runs: Sequence[RunResult], scores: Mapping[tuple[str, str], Scores]) -> tuple[MacroColumn, ...]:
    """Return the macro score, and the one without WNLI, over the tasks that are complete for all models."""
    suite = {run.task for run in runs if run.suite == MACRO_SUITE}
    names = [name for name, _ in plan.models]
    complete = [
        task
        for task in plan.present
        if task in suite
        if all((name, task) in scores and len(scores[name, task].by_seed) == len(plan.seeds) for name in names)
    ]
    kinds = {"GLUE macro": complete}
    if NOISE in complete:
        kinds["without WNLI"] = [task for task in complete if task != NOISE]
    return tuple(
        MacroColumn(
            title, tuple(tasks), {name: _macro([scores[name, task] for task in tasks], plan.seeds) for name in names}
        )
        for title, tasks in kinds.items()
        if len(tasks) > 1
    )


def _macro(tasks: Sequence[Scores], seeds: Sequence[int]) -> Scores:
    """Return the mean over tasks with each seed: the mean of the tasks' medians could lie outside their range."""
    return Scores({seed: statistics.fmean(scores.by_seed[seed] for scores in tasks) for seed in seeds})
