"""What a reader of the tables has to know: what is not in them, what their marks mean, how the runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from potstill.evaluation.results import RunResult
from potstill.evaluation.statistics import MACRO_SUITE, Comparison, beyond_spread, chance_beyond_spread
from potstill.evaluation.tables import BEYOND, INCOMPLETE
from potstill.report.markdown import NOTHING
from potstill.tasks.registry import suites


def notes(comparison: Comparison) -> list[str]:
    """Return sentences, those first that say that figures are wanting or cannot be compared."""
    return [
        *_mismatches(comparison),
        *_wanting(comparison),
        *_macro(comparison),
        *_spread(comparison),
        *_undefined(comparison),
        *_teachers(comparison),
        *_hyperparameters(comparison),
        *_conditions(comparison.runs),
    ]


def _mismatches(comparison: Comparison) -> list[str]:
    """Say where runs that stand in one row or column are not of the same model or data."""
    messages = []
    for task, title in comparison.titles.items():
        by_data: dict[str, list[str]] = {}
        for run in comparison.runs:
            if run.task == task:
                by_data.setdefault(run.data_fingerprint, []).append(run.model)
        if len(by_data) > 1:
            who = "; ".join(f"{mark}: {_listed(models)}" for mark, models in by_data.items())
            messages.append(f"NOT COMPARABLE: the runs of {title} did not read the same data ({who}).")
    for model in comparison.models:
        mine = [run.model_fingerprint for run in comparison.runs if run.model == model]
        weights = dict.fromkeys(weight for weight in mine if weight is not None)
        if len(weights) > 1:
            messages.append(
                f"NOT COMPARABLE: {model} did not have the same weights in all its runs ({_listed(weights)})."
            )
    return messages


def _wanting(comparison: Comparison) -> list[str]:
    plan, titles, messages = comparison.plan, comparison.titles, []
    for task, reason in plan.absent.items():
        messages.append(f"{titles[task]} is absent, not 0: {reason.rstrip('.')}.")
    models = []
    for model in comparison.models:
        missing = {task: comparison.missing(model, task) for task in plan.present}
        if missing and all(seeds == plan.seeds for seeds in missing.values()):
            models.append(f"{model} on all tasks")
            continue
        tasks = [
            titles[task] if seeds == plan.seeds else f"{titles[task]} ({_seeds(seeds)})"
            for task, seeds in missing.items()
            if seeds
        ]
        if tasks:
            models.append(f"{model} on {', '.join(tasks)}")
    planned = len(plan.runs())
    if models:
        messages.append(f"{planned - len(comparison.runs)} of {planned} runs are missing: {'; '.join(models)}.")
    partial = [key for key in comparison.scores if comparison.missing(*key)]
    if partial:
        single = [
            f"{model} on {titles[task]}" for model, task in partial if len(comparison.scores[model, task].by_seed) == 1
        ]
        alone = f" One seed has no median and no spread: {', '.join(single)}." if single else ""
        messages.append(f"{INCOMPLETE} Over the seeds that are there; others are missing.{alone}")
    if comparison.unplanned:
        runs = ", ".join(f"{run.model}/{run.task}/seed-{run.seed}" for run in comparison.unplanned)
        messages.append(f"Left out, for they are not in the plan: {runs}.")
    return messages


def _macro(comparison: Comparison) -> list[str]:
    titles = comparison.titles
    if not comparison.macros:
        return ["No GLUE macro: it takes two GLUE tasks or more that are complete for all models."]
    whole, *rest = comparison.macros
    single = len(comparison.plan.seeds) == 1
    what = "mean of the scores" if single else "median over the seeds of each seed's mean"
    over = f"{len(whole.tasks)} of the {len(suites()[MACRO_SUITE])} tasks, for all models"
    messages = [f"{whole.title}: {what} over {over}: {_titled(titles, whole.tasks)}."]
    left_out = [task for task in comparison.plan.present if task not in whole.tasks]
    if left_out:
        messages[0] += f" Not in it, incomplete or not of GLUE: {_titled(titles, left_out)}."
    messages += [
        f"{column.title}: over the other {len(column.tasks)}; WNLI is too small to tell models apart."
        for column in rest
    ]
    return messages


def _spread(comparison: Comparison) -> list[str]:
    """Explain the mark of a difference beyond the spread, with how often chance sets it."""
    reference = comparison.reference
    if len(comparison.models) == 1:
        return []
    if len(comparison.plan.seeds) == 1:
        return ["1 seed: no spread, so nothing here says whether a difference is more than chance."]
    counts = {
        (len(scores.by_seed), len(other.by_seed))
        for (model, task), scores in comparison.scores.items()
        if model != reference and (other := comparison.scores.get((reference, task)))
        if beyond_spread(scores, other) is not None
    }
    if not counts:
        return []
    chances = ", ".join(
        f"{100 * chance_beyond_spread(one, other):.2g} % for {one} seeds against {other}"
        for one, other in sorted(counts)
    )
    return [
        f"{BEYOND} Beyond the spread: the ranges over the seeds of model and {reference} have no score in common. Of "
        f"two models that do not differ, chance sets this mark in {chances}, in every cell anew."
    ]


def _undefined(comparison: Comparison) -> list[str]:
    reference = comparison.reference
    tasks = [
        task
        for task in comparison.plan.present
        if (scores := comparison.scores.get((reference, task))) and scores.value <= 0
    ]
    if not tasks or len(comparison.models) == 1:
        return []
    return [
        f"{NOTHING} Retention is not defined where {reference} scores 0 or less: {_titled(comparison.titles, tasks)}."
    ]


def _teachers(comparison: Comparison) -> list[str]:
    messages = []
    for model in comparison.models:
        tasks: dict[str | None, list[str]] = {}
        for run in comparison.runs:
            if run.model == model:
                tasks.setdefault(run.teacher, []).append(run.title)
        if set(tasks) - {None}:
            who = "; ".join(f"{teacher or 'no teacher'} ({_listed(titles)})" for teacher, titles in tasks.items())
            messages.append(f"{model} was fine-tuned with task teachers (second distillation): {who}.")
    return messages


def _hyperparameters(comparison: Comparison) -> list[str]:
    """Say which hyper-parameters differ between the runs of a task or were searched; tasks that agree share a note."""
    messages: dict[str, list[str]] = {}
    for task in comparison.plan.present:
        by_model: dict[str, list[RunResult]] = {}
        for run in comparison.runs:
            if run.task == task:
                by_model.setdefault(run.model, []).append(run)
        runs = [run for mine in by_model.values() for run in mine]
        for option in dict.fromkeys(name for run in runs for name in (*run.hyperparameters, *(run.searched or {}))):
            # What a teacher's losses weigh is nothing that runs without a teacher lack.
            taught = {run.teacher is not None for run in runs if option in run.hyperparameters} == {True}
            values = {
                model: _listed(_written(run.hyperparameters.get(option)) for run in mine)
                for model, mine in by_model.items()
                if not taught or any(run.teacher is not None for run in mine)
            }
            tried = {
                model: _listed(_written(value) for run in mine for value in (run.searched or {}).get(option, []))
                for model, mine in by_model.items()
                if model in values
            }
            if option != "seed" and (
                len(set(values.values())) > 1 or any(tried.values()) or ", " in next(iter(values.values()))
            ):
                messages.setdefault(_difference(option, values, tried), []).append(comparison.titles[task])
    return [f"{', '.join(titles)}: {statement}." for statement, titles in messages.items()]


def _difference(option: str, values: Mapping[str, str], tried: Mapping[str, str]) -> str:
    same = len(set(tried.values())) == 1
    each = []
    for model, value in values.items():
        searched = "" if same else f" (searched: {tried[model]})" if tried[model] else " (not searched)"
        each.append(f"{value} for {model}{searched}")
    if same and len(set(values.values())) == 1:
        each = [f"{next(iter(values.values()))} for all"]
    common = next(iter(tried.values()))
    return f"{option}{f' (searched: {common})' if same and common else ''} {'; '.join(each)}"


def _conditions(runs: Sequence[RunResult]) -> list[str]:
    """Say on what, with what, when and for how long runs ran."""
    if not runs:
        return []
    where = Counter(
        ", ".join([run.hardware, *(f"{name} {version}" for name, version in run.versions.items())]) for run in runs
    )
    seconds: Counter[str] = Counter()
    for run in runs:
        seconds.update(run.seconds)
    parts = ", ".join(f"{name} {_duration(spent)}" for name, spent in seconds.items())
    days = sorted({run.date[:10] for run in runs if run.date is not None})
    when = "date not recorded" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    messages = [f"{number} run{'s' if number > 1 else ''} on {what}." for what, number in where.items()]
    return [*messages, f"{when}, {_duration(seconds.total())} in total" + (f": {parts}." if len(seconds) > 1 else ".")]


def _duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"


def _written(value: Any) -> str:
    return "unset" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _titled(titles: Mapping[str, str], tasks: Iterable[str]) -> str:
    return ", ".join(titles[task] for task in tasks)


def _listed(words: Iterable[str]) -> str:
    """Return what differs among words, in the order of first occurrence."""
    return ", ".join(dict.fromkeys(words))
