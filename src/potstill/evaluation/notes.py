"""Notes for readers of the tables: what is missing, what the marks mean, and how the runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from potstill.evaluation.results import RunResult
from potstill.evaluation.statistics import NOISE, Comparison, beyond_spread, chance_beyond_spread
from potstill.evaluation.tables import BEYOND, INCOMPLETE
from potstill.report.markdown import NOTHING
from potstill.tasks.glue import SUITE
from potstill.tasks.metrics import UNITS
from potstill.tasks.own import OWN
from potstill.tasks.registry import suites
from potstill.wording import agreeing, counted

LEARNED = 20.0
"""Score in percent from which a model has learned a task for certain. Below it, scores of small sets jump by chance."""


def notes(comparison: Comparison) -> list[str]:
    """Return the notes; those on figures that cannot be compared, or are missing, come first."""
    return [
        *mismatches(comparison),
        *_not_learned(comparison),
        *_missing(comparison),
        *_left_out(comparison),
        *_macro(comparison),
        *_spread(comparison),
        *_undefined(comparison),
        *_units(comparison),
        *_teachers(comparison),
        *_hyperparameters(comparison),
        *_conditions(comparison.runs),
    ]


def mismatches(comparison: Comparison) -> list[str]:
    """Report the tasks whose runs read different data, and the models whose runs had different weights."""
    messages = []
    for task, title in comparison.titles.items():
        runs = [run for run in comparison.runs if run.task == task]
        recorded = all(run.scored_fingerprint is not None for run in runs)
        by_data = by_rows = _models_by(runs, lambda run: run.data_fingerprint)
        if recorded:
            by_data = _models_by(runs, lambda run: str(run.scored_fingerprint))
        if len(by_data) > 1:
            hint = ""
            if task in OWN:
                hint = " Two data sets have one name: declare each in a .yaml file with a name of its own."
            read = "were not scored on the same rows" if recorded else "did not read the same data"
            messages.append(f"NOT COMPARABLE: the runs of {title} {read} ({_groups(by_data)}).{hint}")
        elif len(by_rows) > 1:
            trained = _models_by(runs, lambda run: f"{run.rows.get('train', 0):,} rows, {run.data_fingerprint[:8]}")
            messages.append(
                f"{title}: all are scored on the same rows, but are not trained on the same ones ({_groups(trained)})."
            )
    for model in comparison.models:
        several = model in (comparison.plan.folders or {})  # of which each has weights of its own
        by_weights: dict[str, list[RunResult]] = {}
        for run in comparison.runs:
            if run.model == model and not several and run.model_fingerprint is not None:
                by_weights.setdefault(run.model_fingerprint, []).append(run)
        if len(by_weights) > 1:
            groups = "; ".join(
                f"{weights[:8]}: {_distinct(run.title for run in runs)}, {_seeds(sorted({run.seed for run in runs}))}"
                for weights, runs in by_weights.items()
            )
            messages.append(
                f"NOT COMPARABLE: {model} did not begin with the same weights in all its runs ({groups}), so that its "
                "figures mix several models: give each model a name of its own."
            )
    return messages


def _models_by(runs: Iterable[RunResult], key: Callable[[RunResult], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run.model)
    return found


def _groups(models: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{mark}: {_distinct(of)}" for mark, of in models.items())


def _not_learned(comparison: Comparison) -> list[str]:
    """Report runs that learned next to nothing of a task that other seeds of the same model learned."""
    messages = []
    for (model, task), scores in comparison.scores.items():
        best = max(scores.by_seed.values())
        failed = {seed: score for seed, score in sorted(scores.by_seed.items()) if score < best / 2}
        if best < LEARNED or not failed or task in (comparison.plan.untrained or ()):
            continue
        found = ", ".join(f"{score:.1f}" for score in failed.values())
        messages.append(
            f"{model} did not learn {comparison.titles[task]} with {_seeds(list(failed))} ({found}; its best seed "
            f"{best:.1f}), as happens in some fine-tunings. Its median and its macro score, and all that is compared "
            "with them, say little: give more --seeds or a lower --learning_rate."
        )
    return messages


def _missing(comparison: Comparison) -> list[str]:
    plan, titles, messages = comparison.plan, comparison.titles, []
    for task, reason in plan.absent.items():
        messages.append(f"{titles[task]} is absent, not 0: {reason.rstrip('.')}.")
    models = []
    for model in comparison.models:
        missing = {task: comparison.missing(model, task) for task in plan.present}
        if missing and all(seeds == plan.seeds_of(task, model) for task, seeds in missing.items()):
            models.append(f"{model} on all tasks")
            continue
        tasks = [
            titles[task] if seeds == plan.seeds_of(task, model) else f"{titles[task]} ({_seeds(seeds)})"
            for task, seeds in missing.items()
            if seeds
        ]
        if tasks:
            models.append(f"{model} on {', '.join(tasks)}")
    planned = len(plan.runs())
    if models:
        messages.append(
            f"{planned - len(comparison.runs)} of {counted(planned, 'run')} "
            f"{agreeing(planned - len(comparison.runs), 'is', 'are')} missing: {'; '.join(models)}."
        )
    partial = [key for key in comparison.scores if comparison.missing(*key)]
    if partial:
        single = [
            f"{model} on {titles[task]}" for model, task in partial if len(comparison.scores[model, task].by_seed) == 1
        ]
        alone = f" One seed has no median and no spread: {', '.join(single)}." if single else ""
        messages.append(
            f"{INCOMPLETE} The figure is over the seeds that have a result; other seeds are missing.{alone}"
        )
    if comparison.unplanned:
        runs = ", ".join(f"{run.model}/{run.task}/seed-{run.seed}" for run in comparison.unplanned)
        messages.append(f"Left out because they are not in the plan: {runs}.")
    return messages


def _left_out(comparison: Comparison) -> list[str]:
    """Report the rows of the sets without training that no model is scored on."""
    counts = {
        f"{run.title} {number:,} {reason}": None
        for run in comparison.runs
        if run.task in (comparison.plan.untrained or ())
        for reason, number in (run.bad_rows or {}).items()
    }
    return [f"Rows and queries that are left out: {', '.join(counts)}."] if counts else []


def _macro(comparison: Comparison) -> list[str]:
    titles, plan = comparison.titles, comparison.plan
    messages = []
    of_suite = any(task in suites()[SUITE] for task in plan.trained)
    if of_suite and not any(column.suite == SUITE for column in comparison.macros):
        messages.append("No GLUE macro: it needs at least two GLUE tasks that are complete for all models.")
    for column in comparison.macros:
        if column.suite != SUITE:
            over = f"{len(column.tasks)} sets, for all models: {_titled(titles, column.tasks)}"
            messages.append(f"{column.title}: mean of the scores over {over}.")
        elif NOISE in column.tasks or len(messages) == 0:
            statistic = "mean of the scores" if len(plan.seeds) == 1 else "median over the seeds of each seed's mean"
            over = f"{len(column.tasks)} of the {len(suites()[SUITE])} tasks, for all models"
            left_out = [task for task in plan.trained if task not in column.tasks]
            rest = f" Not included, because incomplete or not in GLUE: {_titled(titles, left_out)}." if left_out else ""
            messages.append(f"{column.title}: {statistic} over {over}: {_titled(titles, column.tasks)}.{rest}")
        else:
            over = f"over the other {len(column.tasks)} tasks"
            messages.append(f"{column.title}: {over}; WNLI is too small to distinguish models.")
    return messages


def _spread(comparison: Comparison) -> list[str]:
    """Explain the mark of a difference beyond the spread, and give the probability that chance alone sets it."""
    reference = comparison.reference
    if len(comparison.models) == 1 or not comparison.plan.most_seeds:
        return []
    if comparison.plan.most_seeds == 1:
        return ["1 seed: no spread, so nothing here shows whether a difference is more than chance."]
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
        f"{BEYOND} Beyond the spread: the ranges over the seeds of the model and of {reference} do not overlap. If two "
        f"models do not differ, chance alone sets this mark in each cell with a probability of {chances}."
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


def _units(comparison: Comparison) -> list[str]:
    """Explain the metrics that are not in percent."""
    found = {UNITS[name] for run in comparison.runs for name in run.metrics if name in UNITS}
    return [f"{', '.join(sorted(found))}: in the unit of the scores, not in percent; lower is better."] if found else []


def _teachers(comparison: Comparison) -> list[str]:
    messages = []
    for model in comparison.models:
        tasks: dict[str | None, list[str]] = {}
        for run in comparison.runs:
            if run.model == model:
                tasks.setdefault(run.teacher, []).append(run.title)
        if set(tasks) - {None}:
            pairs = "; ".join(f"{teacher or 'no teacher'} ({_distinct(titles)})" for teacher, titles in tasks.items())
            messages.append(f"{model} was fine-tuned with task teachers (second distillation): {pairs}.")
        counts = [run.unlabelled["texts"] for run in comparison.runs if run.model == model and run.unlabelled]
        if counts:
            texts = _distinct(f"{count:,}" for count in counts)
            messages.append(
                f"{model} learned from {texts} unlabelled "
                f"{agreeing(max(counts), 'text', 'texts')} too, by the soft targets of its teacher."
            )
    return messages


def _hyperparameters(comparison: Comparison) -> list[str]:
    """Report hyper-parameters that differ between runs of a task or were searched; equal tasks share a note."""
    messages: dict[str, list[str]] = {}
    for task in comparison.plan.present:
        by_model: dict[str, list[RunResult]] = {}
        for run in comparison.runs:
            if run.task == task:
                by_model.setdefault(run.model, []).append(run)
        runs = [run for runs_of_model in by_model.values() for run in runs_of_model]
        for option in dict.fromkeys(name for run in runs for name in (*run.hyperparameters, *(run.searched or {}))):
            # Weights of a teacher's losses are only compared between runs that have a teacher.
            needs_teacher = {run.teacher is not None for run in runs if option in run.hyperparameters} == {True}
            values = {
                model: _distinct(_written(run.hyperparameters.get(option)) for run in model_runs)
                for model, model_runs in by_model.items()
                if not needs_teacher or any(run.teacher is not None for run in model_runs)
            }
            tried = {
                model: _distinct(
                    _written(value) for run in model_runs for value in (run.searched or {}).get(option, [])
                )
                for model, model_runs in by_model.items()
                if model in values
            }
            differ = len({_written(run.hyperparameters.get(option)) for model in values for run in by_model[model]}) > 1
            if option != "seed" and (differ or any(tried.values())):
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
    """Report the hardware, package versions, dates and durations of the runs."""
    if not runs:
        return []
    environments = Counter(
        ", ".join([run.hardware, *(f"{name} {version}" for name, version in run.versions.items())]) for run in runs
    )
    seconds: Counter[str] = Counter()
    for run in runs:
        seconds.update(run.seconds)
    parts = ", ".join(f"{name} {_duration(spent)}" for name, spent in seconds.items())
    days = sorted({run.date[:10] for run in runs if run.date is not None})
    when = "date not recorded" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    messages = [f"{number} run{'s' if number > 1 else ''} on {place}." for place, number in environments.items()]
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


def _distinct(values: Iterable[str]) -> str:
    """Return the distinct values, joined by commas, in the order of first occurrence."""
    return ", ".join(dict.fromkeys(values))
