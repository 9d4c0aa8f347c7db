"""Tasks that label or score a sentence or a pair of sentences, and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from potstill.errors import PotstillError
from potstill.tasks.labels import ClassNames, canonical, score_of
from potstill.tasks.metrics import METRICS
from potstill.tasks.rows import BadRows, NumberedRow, text_fault
from potstill.tasks.task import Task


@dataclass(frozen=True)
class Table:
    """The columns of a table that hold the values of a task.

    Attributes:
        text: column of the first sentence: a name, or a position in a table without a header.
        pair: column of the second sentence, a name or a position; None for tasks on one sentence.
        label: column of the label or score, a name or a position.
        labels: label as the file writes it → its number; or class names, if files write names or numbers; None for a
            score.
        pair_may_lack: whether a file may have no second sentence. Then none of its rows has one.
    """

    text: str | int
    pair: str | int | None
    label: str | int
    labels: Mapping[Any, int] | ClassNames | None
    pair_may_lack: bool = False

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns."""
        return isinstance(self.text, str)


@dataclass(frozen=True)
class SentenceTask(Task):
    """A task that labels or scores a text, or a pair of texts.

    Attributes:
        name: see `Task`.
        title: see `Task`; also the folder's name in the official download.
        labels: names of the classes in the order of their numbers; empty for a regression.
        metrics: names in `METRICS`; the task's score is their mean, as in GLUE.
        train: the training split.
        dev: the splits that are scored; the task's score is the mean over them. The name of a split is the name of its
            file in the official download. `hub_splits` gives the name on the hub.
        official: its columns in the official download.
        hub: its columns in a hub dataset, and in `.jsonl` and `.parquet` files.
        hub_name: the dataset on the hub; None if there is none, and the data must be local.
        hub_config: configuration of the dataset on the hub.
        hub_splits: file name → name on the hub, if they differ.
        short_splits: split → its name in tables that print the scores of several splits.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    official: Table
    hub: Table
    hub_name: str | None = None
    hub_config: str | None = None
    train: str = "train"
    dev: tuple[str, ...] = ("dev",)
    hub_splits: Mapping[str, str] | None = None
    short_splits: Mapping[str, str] | None = None

    pipeline: ClassVar[str] = "text-classification"

    @property
    def is_regression(self) -> bool:
        """Whether the task asks for a number instead of a class."""
        return not self.labels

    @property
    def short_names(self) -> dict[str, str]:
        """Metric → its short name in `METRICS`, and split → its short name if it has one."""
        return {name: METRICS[name].short for name in self.metrics} | dict(self.short_splits or {})

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Return the task's metrics and their mean as `score`, all in percent.

        Args:
            predictions: (N,) classes, or numbers for a regression.
            references: (N,) correct classes or numbers.

        Raises:
            PotstillError: there is nothing to score, or a number that is not finite.
        """
        if len(references) == 0:
            raise PotstillError(f"The development set of {self.title} is empty: give a file with rows to score.")
        for what, numbers in (("predictions", predictions), ("references", references)):
            wrong = int((~np.isfinite(np.asarray(numbers, np.float64))).sum())
            if wrong:
                raise PotstillError(f"{wrong} of {len(numbers)} {what} for {self.title} are not finite numbers.")
        values = {name: METRICS[name](predictions, references) for name in self.metrics}
        return values | {"score": sum(values.values()) / len(values)}


Row = tuple[str, str | None, int | float]
"""First sentence, second sentence, label or score."""


def parse_rows(
    rows: Sequence[NumberedRow], table: Table, task: SentenceTask, where: str, typed: bool, bad: BadRows
) -> list[Row]:
    """Turn rows of a table into rows of a task.

    Args:
        rows: all rows of the file.
        table: the columns to read.
        task: the task, for messages.
        where: the file or dataset, for messages.
        typed: whether the file distinguishes numbers from text.
        bad: takes a row if a value is missing, the label is not one of the task's, or the score is not finite.

    Raises:
        PotstillError: there is such a row and `bad` does not take it; or the labels of the file are ambiguous.
    """
    pair = table.pair
    if table.pair_may_lack and not any(pair in row for _, row in rows):
        pair = None
    known = table.labels
    if isinstance(known, ClassNames):
        known = known.as_written([row.get(table.label) for _, row in rows], typed, where)
    found: list[Row] = []
    for number, row in rows:
        fault = _fault(row, (table.text, pair), table.label)
        value = row.get(table.label)
        label = score_of(value) if known is None else known.get(canonical(value))
        if fault is None and label is None:
            if known is None:
                fault = f": the score of {task.title} is {value!r}, not a finite number"
            else:
                names = ", ".join(dict.fromkeys(map(str, known)))
                fault = f": the label is {str(value)!r}, but {task.title} has {names}"
        if fault is not None:
            bad.add(f"{where}, row {number}{fault}")
        elif label is not None:
            found.append((row[table.text], None if pair is None else row[pair], label))
    return found


def _fault(row: Mapping[Any, Any], texts: tuple[str | int | None, ...], label: str | int) -> str | None:
    """Return what is wrong with the texts of a row, or which column is missing; None if nothing is wrong."""
    for column in (*texts, label):
        if column is not None and column not in row:
            return f", has no {column!r}, only {', '.join(map(repr, row)) or 'nothing at all'}"
    for column in texts:
        fault = None if column is None else text_fault(row[column], "a sentence")
        if fault is not None:
            return f": {fault}"
    return None
