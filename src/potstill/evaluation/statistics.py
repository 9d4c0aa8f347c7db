"""Computes medians and ranges over seeds, macro scores over tasks, and retention; a missing score is never a 0."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.evaluation.results import Plan, RunResult
from potstill.evaluation.suites import ENCODER_SUITES
from potstill.tasks.glue import SUITE
from potstill.tasks.registry import title_of

MEANS = {SUITE: "GLUE macro"} | {suite.name: f"{suite.title} mean" for suite in ENCODER_SUITES.values()}
"""Suite → title of the mean over its tasks. No published mean includes IMDb or SQuAD."""

NOISE = "wnli"  # it has 71 development examples, and few models beat its majority class


@dataclass(frozen=True)
class Scores:
    """Scores of one model by seed, in percent: its scores on one task, or its macro scores (means over tasks).

    Attributes:
        by_seed: seed → score; it has at least one seed.
    """

    by_seed: Mapping[int, float]

    @property
    def value(self) -> float:
        """The median over the seeds; it is never outside their range."""
        return statistics.median(self.by_seed.values())


@dataclass(frozen=True)
class MacroColumn:
    """The mean over the tasks of a suite, for all models.

    Attributes:
        suite: the suite.
        title: the column's title.
        tasks: the tasks that it is the mean over; the same for all models.
        by_model: model → its macro scores.
    """

    suite: str
    title: str
    tasks: tuple[str, ...]
    by_model: Mapping[str, Scores]


@dataclass(frozen=True)
class Comparison:
    """The scores of models, to be compared with those of a reference.

    Attributes:
        plan: the planned runs.
        runs: the planned runs that have a result, in the order in which they were read.
        unplanned: results of runs that are not in the plan; they are in no score.
        reference: name of the model that the others are compared with.
        scores: (model, task) → scores, if there is a run.
        macros: columns of means; a suite has none if fewer than two of its tasks are complete for all models.
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
        """Planned or absent task → its name as papers print it; an unknown task without a run keeps its own name."""
        known = {run.task: run.title for run in self.runs}
        every = dict.fromkeys([*self.plan.tasks, *self.plan.absent])
        return {task: known[task] if task in known else title_of(task) for task in every}

    def missing(self, model: str, task: str) -> list[int]:
        """Return the planned seeds that have no run."""
        scores = self.scores.get((model, task))
        return [seed for seed in self.plan.seeds_of(task, model) if scores is None or seed not in scores.by_seed]


def compare_runs(plan: Plan, runs: Sequence[RunResult], reference: str | None = None) -> Comparison:
    """Collect the scores of the planned runs.

    Args:
        plan: the planned runs.
        runs: the results.
        reference: name of a model; the first model of the plan if None.

    Raises:
        PotstillError: the plan has no such model.
    """
    names = [name for name, _ in plan.models]
    if reference is None:
        reference = names[0]
    if reference not in names:
        raise PotstillError(f"There is no model {reference!r} to be the reference: choose from {', '.join(names)}.")
    planned = set(plan.runs())
    planned_runs = tuple(run for run in runs if (run.model, run.task, run.seed) in planned)
    by_cell: dict[tuple[str, str], dict[int, float]] = {}
    for run in planned_runs:
        by_cell.setdefault((run.model, run.task), {})[run.seed] = run.score
    scores = {cell: Scores(by_seed) for cell, by_seed in by_cell.items()}
    return Comparison(
        plan=plan,
        runs=planned_runs,
        unplanned=tuple(run for run in runs if (run.model, run.task, run.seed) not in planned),
        reference=reference,
        scores=scores,
        macros=_macros(plan, planned_runs, scores),
    )


def retention(value: float, reference: float) -> float | None:
    """Return a score in percent of a reference's score; None if the reference's score is 0 or less."""
    return 100 * value / reference if reference > 0 else None


def beyond_spread(one: Scores, other: Scores) -> bool | None:
    """Return whether the closed ranges over seeds do not overlap; None if either model has only one seed."""
    if min(len(one.by_seed), len(other.by_seed)) < 2:
        return None
    a, b = one.by_seed.values(), other.by_seed.values()
    return max(a) < min(b) or max(b) < min(a)


def chance_beyond_spread(seeds: int, others: int) -> float:
    """Return the probability, 0 to 1, that `beyond_spread` is True for two models that do not differ.

    For such models, all ways to give the ranks of the scores to the two models are equally likely. In two of these
    ways the ranges do not overlap. Equal scores only lower the probability.
    """
    return min(1.0, 2 / math.comb(seeds + others, seeds))


def _macros(plan: Plan, runs: Sequence[RunResult], scores: Mapping[tuple[str, str], Scores]) -> tuple[MacroColumn, ...]:
    """Return the mean of each suite over the tasks that are complete for all models; that of GLUE also without WNLI."""
    suite_of = {run.task: run.suite for run in runs}
    names = [name for name, _ in plan.models]
    columns = []
    for suite, title in MEANS.items():
        complete = [
            task
            for task in plan.present
            if suite_of.get(task) == suite
            # The dev score of a fine-tuned reranker is no set of the suite of that name.
            if suite == SUITE or task in (plan.untrained or ())
            if all(
                (name, task) in scores and len(scores[name, task].by_seed) == len(plan.seeds_of(task, name))
                for name in names
            )
        ]
        kinds = {title: complete}
        if NOISE in complete:
            kinds["without WNLI"] = [task for task in complete if task != NOISE]
        for kind, tasks in kinds.items():
            if len(tasks) > 1:
                by_model = {
                    name: _macro([scores[name, task] for task in tasks], plan.seeds_of(tasks[0], name))
                    for name in names
                }
                columns.append(MacroColumn(suite, kind, tuple(tasks), by_model))
    return tuple(columns)


def _macro(tasks: Sequence[Scores], seeds: Sequence[int]) -> Scores:
    """Return each seed's mean over tasks: the mean of the tasks' medians could be outside the range of these."""
    return Scores({seed: statistics.fmean(scores.by_seed[seed] for scores in tasks) for seed in seeds})
