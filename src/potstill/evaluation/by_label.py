"""Compares models label by label: which labels a student loses against the reference, the largest loss first."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.errors import PotstillError
from potstill.evaluation.notes import mismatches
from potstill.evaluation.results import RunResult
from potstill.evaluation.statistics import Comparison, Scores, beyond_spread
from potstill.evaluation.tables import BEYOND, Grid
from potstill.report.markdown import NOTHING, visible
from potstill.wording import agreeing, counted

FIGURES = ("precision", "recall", "f1")
FEW = 30
"""With fewer rows than this, one row more or less moves the F1 of a label by about two points or more."""


@dataclass(frozen=True)
class LabelFigures:
    """The figures of a label for one model: medians over its seeds, in percent.

    Attributes:
        precision: the median over the seeds.
        recall: the same.
        f1: the same.
        f1_by_seed: seed → F1.
    """

    precision: float
    recall: float
    f1: float
    f1_by_seed: dict[str, float]


@dataclass(frozen=True)
class LabelDifference:
    """A label for a model and for the reference.

    Attributes:
        label: its name.
        support: number of scored rows, words or entities with this label.
        model: the figures of the model; None if it does not have the label.
        reference: those of the reference; None if it does not have the label.
        difference: F1 of the model minus F1 of the reference, of the medians; None if one of them is missing.
        beyond_spread: whether the F1s of all seeds of one are above those of the other; None with a single seed.
    """

    label: str
    support: int
    model: LabelFigures | None
    reference: LabelFigures | None
    difference: float | None
    beyond_spread: bool | None


@dataclass(frozen=True)
class LabelTable:
    """The labels of a task for one model against the reference, the largest loss first.

    Attributes:
        task: name of the task.
        title: its title.
        model: name of the model.
        seeds: number of seeds of the model and of the reference that have figures.
        labels: the labels.
    """

    task: str
    title: str
    model: str
    seeds: tuple[int, int]
    labels: tuple[LabelDifference, ...]


def label_tables(comparison: Comparison) -> list[LabelTable]:
    """Return a table for each task with labels and each model but the reference.

    Raises:
        PotstillError: there is only one model, or no task has figures of its labels for a model and for the reference.
    """
    if len(comparison.models) < 2:
        raise PotstillError("--by label compares models, and there is only one: give the results of two models.")
    tables = []
    for task in comparison.plan.present:
        theirs = _runs(comparison, comparison.reference, task)
        for model in comparison.models:
            mine = _runs(comparison, model, task)
            if model != comparison.reference and mine and theirs:
                tables.append(_table(comparison, task, model, mine, theirs))
    if not tables:
        raise PotstillError(
            f"No task has figures of its labels for both {comparison.reference} and another model: --by label is for "
            "tasks with classes, and results of earlier versions do not have these figures; run these again."
        )
    return tables


def label_grid(table: LabelTable, reference: str) -> Grid:
    """Return a table as it is printed."""
    rows = []
    for one in table.labels:
        cells = [NOTHING if one.difference is None else f"{BEYOND * bool(one.beyond_spread)}{one.difference:+.1f}"]
        for name in reversed(FIGURES):
            cells += [_cell(figures, name) for figures in (one.reference, one.model)]
        rows.append((one.label, [str(one.support), *cells]))
    header = ["rows", "ΔF1"]
    for name in reversed(FIGURES):
        short = "F1" if name == "f1" else name
        header += [f"{short}\n{visible(reference)}", f"{short}\n{visible(table.model)}"]
    what = "" if max(table.seeds) < 2 else ", the median of each over the seeds"
    caption = f"{table.title}: labels of {table.model} against {reference}, the largest loss first, in percent{what}"
    return Grid(caption, header, rows)


def label_notes(tables: Sequence[LabelTable], reference: str) -> list[str]:
    """Return what a reader of the tables must know."""
    notes = []
    for table in tables:
        changes = [one.difference for one in table.labels if one.difference is not None]
        lost, gained = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
        marked = sum(bool(one.beyond_spread) for one in table.labels)
        beyond = f", {marked} of these beyond the spread ({BEYOND})" if marked else ""
        middle = f"; the median difference is {statistics.median(changes):+.1f}" if changes else ""
        of = f"{table.title}, {table.model}: of {counted(len(table.labels), 'label')}"
        notes.append(f"{of} {lost} lose and {gained} gain{beyond}{middle}.")
        few = sum(one.support < FEW for one in table.labels)
        if few:
            notes.append(
                f"{table.title}: {counted(few, 'label')} {agreeing(few, 'has', 'have')} fewer than {FEW} rows, so "
                f"that a single row moves the F1 by about {100 / FEW / 2:.0f} points or more."
            )
        alone = sorted({one.label for one in table.labels if one.model is None or one.reference is None})
        if alone:
            notes.append(f"{table.title}: {table.model} and {reference} do not both have {', '.join(alone[:8])}.")
        if min(table.seeds) == 1:
            notes.append(
                f"{table.title}, {table.model}: with one seed nothing shows whether a difference is more than chance."
            )
    return list(dict.fromkeys(notes))


def label_record(tables: Sequence[LabelTable], comparison: Comparison) -> dict[str, Any]:
    """Return the tables as values for JSON."""
    return {
        "reference": comparison.reference,
        "tables": [asdict(table) for table in tables],
        "notes": [*mismatches(comparison), *label_notes(tables, comparison.reference)],
    }


def _runs(comparison: Comparison, model: str, task: str) -> list[RunResult]:
    return [run for run in comparison.runs if run.model == model and run.task == task and run.per_label is not None]


def _table(
    comparison: Comparison, task: str, model: str, mine: Sequence[RunResult], theirs: Sequence[RunResult]
) -> LabelTable:
    labels: dict[str, int] = {}
    for run in (*theirs, *mine):
        for label, figures in (run.per_label or {}).items():
            labels.setdefault(label, int(figures["support"]))
    rows = []
    for label, support in labels.items():
        one, other = _figures(mine, label), _figures(theirs, label)
        difference = beyond = None
        if one is not None and other is not None:
            difference = one.f1 - other.f1
            by_seed = [{int(seed): f1 for seed, f1 in of.f1_by_seed.items()} for of in (one, other)]
            beyond = beyond_spread(Scores(by_seed[0]), Scores(by_seed[1]))
        rows.append(LabelDifference(label, support, one, other, difference, beyond))
    rows.sort(key=lambda row: (row.difference is None, row.difference or 0.0, -row.support))
    return LabelTable(task, comparison.titles[task], model, (len(mine), len(theirs)), tuple(rows))


def _figures(runs: Sequence[RunResult], label: str) -> LabelFigures | None:
    """Return the medians of a label over the runs of a model; None if one of them does not have the label."""
    found = {run.seed: (run.per_label or {}).get(label) for run in runs}
    having = {seed: figures for seed, figures in found.items() if figures is not None}
    if len(having) < len(found):
        return None
    precision, recall, f1 = (statistics.median(figures[name] for figures in having.values()) for name in FIGURES)
    return LabelFigures(precision, recall, f1, {str(seed): figures["f1"] for seed, figures in having.items()})


def _cell(figures: LabelFigures | None, name: str) -> str:
    return NOTHING if figures is None else f"{getattr(figures, name):.1f}"
