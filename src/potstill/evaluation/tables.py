"""Prints a comparison as tables, in text and in Markdown."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from potstill.evaluation.results import RunResult
from potstill.evaluation.statistics import Comparison, Scores, beyond_spread, retention
from potstill.evaluation.suites import ENCODER_SUITES
from potstill.report.markdown import NOTHING, plain, table, visible
from potstill.tasks.metrics import UNITS
from potstill.tasks.registry import short_names

WIDTH = 100
BEYOND = "*"
INCOMPLETE = "†"

TOGETHER = 4
"""So many metrics of a task share a column."""
IN_UNITS = frozenset(UNITS.values())
"""Short names of the metrics that are not in percent."""


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        caption: describes the figures.
        header: titles of the columns after the first.
        rows: (model, cells); a cell is a figure, with its range over the seeds on a second line.
    """

    caption: str
    header: list[str]
    rows: list[tuple[str, list[str]]]


def grids(comparison: Comparison) -> list[Grid]:
    """Return the tables of scores, of retention, and of the metrics of tasks that have several."""
    all_grids = (_scores(comparison), _retention(comparison), _metrics(comparison), _metrics(comparison, relative=True))
    return [grid for grid in all_grids if grid.header and grid.rows]


def text(tables: Sequence[Grid], notes: Sequence[str]) -> str:
    """Return tables and notes for a terminal; a table wider than `WIDTH` characters continues below."""
    parts = []
    for original in tables:
        grid = replace(original, rows=[(visible(name), cells) for name, cells in original.rows])
        pages = []
        for columns in _fitting(grid):
            page = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            page.add_column("", no_wrap=True)
            for column in columns:
                page.add_column(grid.header[column], justify="right", no_wrap=True)
            for name, cells in grid.rows:
                page.add_row(name, *(cells[column] for column in columns))
            # The terminal's width has no effect, so the printed text and the text in a file are the same.
            console = Console(
                file=io.StringIO(), width=10_000, color_system=None, markup=False, highlight=False, emoji=False
            )
            with console.capture() as captured:
                console.print(page)
            pages.append("\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip()))
        parts.append(f"{visible(grid.caption)}\n" + "\n\n".join(pages))
    wrapped = [
        textwrap.fill(visible(note), WIDTH, initial_indent="· ", subsequent_indent="  ", break_long_words=False)
        for note in notes
    ]
    return "\n\n".join([*parts, "\n".join(wrapped)])


def markdown(tables: Sequence[Grid], notes: Sequence[str]) -> str:
    """Return tables and notes as GitHub's Markdown; ranges are in brackets after the figures."""
    parts = []
    for grid in tables:
        rows = [["", *grid.header], *([name, *cells] for name, cells in grid.rows)]
        header, *lines = ([_escaped(cell) for cell in row] for row in rows)
        parts.append(f"{plain(grid.caption)}\n\n{table(header, lines, figures=True)}")
    return "\n\n".join([*parts, "\n".join(f"- {plain(note)}" for note in notes)])


def _scores(comparison: Comparison) -> Grid:
    seeds = comparison.plan.most_seeds
    # The word "median" would be misleading for a single seed.
    each = "up to " if comparison.plan.folders else ""
    what = {0: "", 1: " (1 seed: no spread)"}.get(seeds, f" (median of {each}{seeds} seeds, lowest–highest)")
    rows = []
    for model in comparison.models:
        cells = [_figure(column.by_model[model]) for column in comparison.macros]
        for task in comparison.plan.present:
            scores = comparison.scores.get((model, task))
            mark = INCOMPLETE if scores and comparison.missing(model, task) else ""
            cells.append(mark + _figure(scores) if scores else NOTHING)
        rows.append((model, cells))
    return Grid(f"Score in percent{what}", _columns(comparison), rows)


def _retention(comparison: Comparison) -> Grid:
    rows = []
    for model in comparison.models:
        if model == comparison.reference:
            continue
        cells = [
            _retained(column.by_model[model], column.by_model[comparison.reference]) for column in comparison.macros
        ]
        for task in comparison.plan.present:
            scores, others = (comparison.scores.get((name, task)) for name in (model, comparison.reference))
            incomplete = any(comparison.missing(name, task) for name in (model, comparison.reference))
            mark = INCOMPLETE if incomplete else ""
            cells.append(mark + _retained(scores, others) if scores and others else NOTHING)
        rows.append((model, cells))
    return Grid(f"Retention: percent of the score of {comparison.reference}", _columns(comparison), rows)


def _metrics(comparison: Comparison, relative: bool = False) -> Grid:
    """Return the metrics of tasks that have several; each figure is that metric's own median.

    A task with more than `TOGETHER` of them, such as one that is scored on many files, has a column for each.

    With `relative` it is in percent of the reference's figure, and only tasks are shown on which nothing is trained:
    their score is one of the metrics and not the mean.
    """
    runs: dict[tuple[str, str], list[RunResult]] = {}
    names: dict[str, list[str]] = {}
    for run in comparison.runs:
        runs.setdefault((run.model, run.task), []).append(run)
        if len(parts := _parts(run)) > 1:
            names.setdefault(run.task, list(parts))
    kept = comparison.plan.untrained or () if relative else names
    tasks = [task for task in comparison.plan.present if task in names and task in kept]

    def medians(model: str, task: str) -> list[float]:
        measured = [_parts(run) for run in runs.get((model, task), [])]
        if not measured or not all(name in parts for parts in measured for name in names[task]):
            return []
        return [statistics.median(parts[name] for parts in measured) for name in names[task]]

    columns = {
        task: [slice(None)] if len(names[task]) <= TOGETHER else [slice(n, n + 1) for n in range(len(names[task]))]
        for task in tasks
    }
    rows = []
    for model in comparison.models:
        cells: list[str] = []
        for task in tasks:
            figures: list[float | None] = [*medians(model, task)]
            if relative:
                others = medians(comparison.reference, task)
                figures = [retention(one or 0, other) for one, other in zip(figures, others, strict=False)]
            mark = INCOMPLETE if (model, task) in runs and comparison.missing(model, task) else ""
            written = [
                NOTHING if one is None else f"{one:.3f}" if name in IN_UNITS and not relative else f"{one:.1f}"
                for name, one in zip(names[task], figures, strict=False)
            ]
            cells += [mark + ("/".join(written[of]) or NOTHING) for of in columns[task]]
        if not relative or model != comparison.reference:
            rows.append((model, cells))
    header = [
        f"{visible(comparison.titles[task])}\n{visible('/'.join(names[task][of]))}"
        for task in tasks
        for of in columns[task]
    ]
    if relative:
        return Grid(f"Retention of these metrics: percent of those of {comparison.reference}", header, rows)
    what = ", the median of each" if comparison.plan.most_seeds > 1 else ""
    return Grid(f"Metrics of the tasks that have several{what}", header, rows)


def _parts(run: RunResult) -> dict[str, float]:
    """Return the single metrics, or the splits' scores, that belong to a run's score, by the short names in papers."""
    parts = {}
    suite = ENCODER_SUITES.get(run.suite)
    short = short_names(run.task) | dict(suite.metrics if suite else {})
    for name, value in run.metrics.items():
        if isinstance(value, dict):
            if "score" in value:
                parts[short.get(name, name)] = value["score"]
        elif name in short:
            parts[short[name]] = value
    return parts


def _columns(comparison: Comparison) -> list[str]:
    tasks = [visible(comparison.titles[task]) for task in comparison.plan.present]
    return [column.title for column in comparison.macros] + tasks


def _figure(measured: Scores) -> str:
    by_seed = measured.by_seed.values()
    if len(by_seed) < 2:
        return f"{measured.value:.1f}"
    return f"{measured.value:.1f}\n{min(by_seed):.1f}–{max(by_seed):.1f}"


def _retained(measured: Scores, reference: Scores) -> str:
    kept = retention(measured.value, reference.value)
    mark = BEYOND if beyond_spread(measured, reference) else ""
    return mark + (NOTHING if kept is None else f"{kept:.1f}")


def _fitting(grid: Grid) -> list[list[int]]:
    """Return the numbers of the columns on each page; every page repeats the column of models."""
    first = max(cell_len(name) for name, _ in grid.rows)
    pages: list[list[int]] = []
    used = WIDTH
    for column, title in enumerate(grid.header):
        lines = [*title.split("\n"), *(line for _, cells in grid.rows for line in cells[column].split("\n"))]
        width = 2 + max(map(cell_len, lines))
        if used + width > WIDTH:
            pages.append([])
            used = first + 2  # a table has one blank character at each side
        pages[-1].append(column)
        used += width
    return pages


def _escaped(cell: str) -> str:
    """Return a cell as Markdown with its special characters escaped; a second line is put into brackets."""
    figure, _, below = cell.partition("\n")
    return plain(f"{figure} ({below})" if below else figure)
