"""The part of a page on task models: the tables of `compare`, the labels, confusions, curves, pruning and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.errors import PotstillError
from potstill.evaluation.by_label import LabelTable, label_grid, label_notes, label_tables
from potstill.evaluation.folders import read_folders
from potstill.evaluation.notes import notes
from potstill.evaluation.statistics import Comparison, compare_runs
from potstill.evaluation.tables import Grid, grids
from potstill.finetuning.result import RunResult
from potstill.live_line import duration
from potstill.pages.folders import Found
from potstill.report import html
from potstill.report.label_card import MOST_ROWS, confused_pairs, is_drawn
from potstill.report.markdown import NOTHING
from potstill.report.plots import confusion_plot

MOST_OPENED = 30
"""A table of more labels than this is behind a click."""

MOST_CONFUSIONS = 6
"""So many confusion matrices are drawn at most, because each is a picture of about 50 kB."""


def comparison_of(found: Sequence[Found], reference: str | None) -> Comparison:
    """Return the comparison of all runs in folders of `finetune`, `prune` and `evaluate`: see `compare`."""
    arguments = [f"{one.name}={one.path}" if one.named else str(one.path) for one in found]
    return compare_runs(*read_folders(arguments), reference)


def scores(comparison: Comparison) -> list[str]:
    """Return the tables of scores and retention, with their notes."""
    tables = [grid_table(grid) for grid in grids(comparison)]
    return [*tables, html.notes(notes(comparison))]


def labels(comparison: Comparison) -> list[str]:
    """Return a table for each task with labels: each model against the reference, or the figures of the only model."""
    if not any(run.per_label for run in comparison.runs):
        return []
    tables = _compared(comparison)
    sections = [_of_a_table(one, comparison.reference) for one in tables]
    if tables:
        return [*sections, html.notes(label_notes(tables, comparison.reference))]
    alone = [run for run in comparison.runs if run.per_label and run.seed == _first_seed(comparison, run)]
    return [_of_a_run(run) for run in alone]


def confusions(comparison: Comparison) -> list[str]:
    """Return the confusion matrices of the first seed of each model and task, and the most frequent confusions."""
    drawn: list[str] = []
    lists: list[str] = []
    for run in comparison.runs:
        if run.confusion is None or run.seed != _first_seed(comparison, run):
            continue
        names, counts = run.confusion["labels"], run.confusion["counts"]
        where = f"{run.model} on {run.title}, seed {run.seed}"
        if is_drawn(run.confusion) and len(drawn) < MOST_CONFUSIONS:
            drawn.append(html.picture(where, confusion_plot(names, counts)))
        pairs = confused_pairs(names, counts)
        if len(names) > 2 and pairs:
            rows = [[pair.correct, pair.predicted, f"{pair.rows:,}", f"{pair.share:.1f} %"] for pair in pairs]
            header = ["correct label", "predicted label", "rows", "share of the label"]
            lists.append(html.details(f"Most frequent confusions: {where}", [html.table(header, rows)]))
    return [html.figures(drawn), *lists]


def pruning(runs: Sequence[RunResult]) -> list[str]:
    """Return the curves of the score against what was removed, and the table of each pruned model."""
    pruned = [(f"{run.model}, seed {run.seed}", run.pruning["curve"]) for run in runs if run.pruning]
    if not pruned:
        return []
    plots = []
    for what in ("heads", "neurons"):
        curves = {
            name: [(100 * point[f"{what}_share"], point["score"]) for point in points]
            for name, points in pruned
            if points[-1][what]
        }
        if curves:
            plots.append(html.curves(f"Score by {what} removed", curves, f"share of the {what} removed, %", "score, %"))
    rows = [
        [
            name,
            *(f"{points[-1][what]:,} ({points[-1][f'{what}_share']:.0%})" for what in ("heads", "neurons")),
            *(f"{point['score']:.2f}" for point in (points[0], points[-1])),
            *(f"{point['parameters']:,}" for point in (points[0], points[-1])),
            NOTHING if points[-1]["milliseconds"] is None else f"{points[-1]['milliseconds']:.2f}",
        ]
        for name, points in pruned
    ]
    before = ("score before", "score after", "parameters before", "parameters after", "ms a text")
    return [html.figures(plots), html.table(["", "heads removed", "neurons removed", *before], rows)]


def histories(runs: Sequence[RunResult]) -> dict[str, list[dict[str, Any]]]:
    """Return name → log of the runs that have one."""
    return {_name(run, runs): run.log_history for run in runs if run.log_history}


def costs(runs: Sequence[RunResult]) -> list[list[str]]:
    """Return a row of the table of costs for each run; see `training.costs`."""
    return [
        [
            _name(run, runs),
            NOTHING if run.steps is None else f"{run.steps:,}",
            ", ".join(f"{count:,} of {split}" for split, count in run.rows.items()),
            duration(sum(run.seconds.values())),
            run.hardware,
            ", ".join(f"{name} {number}" for name, number in run.versions.items()),
        ]
        for run in runs
    ]


def grid_table(grid: Grid) -> str:
    """Return a table of an evaluation or a measurement."""
    rows = [[name, *map(_two, cells)] for name, cells in grid.rows]
    return html.table(["", *map(_two, grid.header)], rows, grid.caption)


def _compared(comparison: Comparison) -> list[LabelTable]:
    try:
        return label_tables(comparison)
    except PotstillError:  # there is one model, or only one has figures of its labels
        return []


def _of_a_table(table: LabelTable, reference: str) -> str:
    grid = label_grid(table, reference)
    shown = html.table(["", *map(_two, grid.header)], [[name, *cells] for name, cells in grid.rows], grid.caption)
    if len(grid.rows) <= MOST_OPENED:
        return shown
    return html.details(f"{table.title}: {len(grid.rows):,} labels of {table.model}", [shown])


def _of_a_run(run: RunResult) -> str:
    figures: Mapping[str, Any] = run.per_label or {}
    order = sorted(figures, key=lambda label: (figures[label]["f1"], -figures[label]["support"]))
    rows = [
        [label, f"{int(figures[label]['support']):,}"]
        + [f"{figures[label][name]:.1f}" for name in ("f1", "precision", "recall")]
        for label in order[:MOST_ROWS]
    ]
    caption = f"{run.title}: labels of {run.model}, seed {run.seed}, the lowest F1 first, in percent"
    if len(order) > MOST_ROWS:
        caption += f"; the {len(order) - MOST_ROWS:,} labels with a higher F1 are left out"
    shown = html.table(["", "rows", "F1", "precision", "recall"], rows, caption)
    return shown if len(rows) <= MOST_OPENED else html.details(f"{run.title}: {len(order):,} labels", [shown])


def _first_seed(comparison: Comparison, run: RunResult) -> int:
    return min(one.seed for one in comparison.runs if (one.model, one.task) == (run.model, run.task))


def _name(run: RunResult, runs: Sequence[RunResult]) -> str:
    """Return the name of a run among others: the model, and what else tells it from them."""
    of_model = [one for one in runs if one.model == run.model]
    name = run.model
    if len({one.task for one in of_model}) > 1:
        name += f" on {run.title}"
    return name if len({one.seed for one in of_model}) == 1 else f"{name}, seed {run.seed}"


def _two(cell: str) -> html.Cell:
    first, line, second = cell.partition("\n")
    return html.Two(first, second) if line else cell
