"""Tasks that label or score a sentence or a pair of sentences, and the rows that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import PotstillError
from potstill.tasks.metrics import METRICS


@dataclass(frozen=True)
class Table:
    """Where a table has the columns of a task.

    Attributes:
        text: the first sentence: a name, or a position in a table without a header.
        pair: the second sentence, likewise; None for tasks on one sentence.
        label: the label or score, likewise.
        labels: what a label is written as → its number; None where it is a score.
    """

    text: str | int
    pair: str | int | None
    label: str | int
    labels: Mapping[str, int] | None

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns."""
        return isinstance(self.text, str)


@dataclass(frozen=True)
class SentenceTask:
    """One task.

    Attributes:
        name: as the command line knows it.
        title: as papers print it, and the folder's name in the official download.
        labels: names of the classes in the order of their numbers; none for a regression.
        metrics: names in `METRICS`; the task's score is their mean, as GLUE has it.
        train: the training split.
        dev: the splits that are scored, the task's score being the mean over them. A split's name is that of its file
            in the official download and, by `hub_splits`, of its split on the hub.
        official: its columns in the official download.
        hub: its columns in a hub dataset, and in `.jsonl` and `.parquet` files.
        hub_name: the dataset on the hub.
        hub_config: the configuration there.
        hub_splits: file name → name on the hub, where they differ.
        max_length: longest input that fine-tuning reads, in tokens.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    official: Table
    hub: Table
    hub_name: str
    hub_config: str | None = None
    train: str = "train"
    dev: tuple[str, ...] = ("dev",)
    hub_splits: Mapping[str, str] | None = None
    max_length: int = 128

    @property
    def is_regression(self) -> bool:
        """Whether it asks for a number instead of a class."""
        return not self.labels

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Return the task's metrics and their mean as `score`, all in percent.

        Args:
            predictions: (N,) classes, or numbers for a regression.
            references: (N,) likewise.

        Raises:
            PotstillError: there is nothing to score.
        """
        if len(references) == 0:
            raise PotstillError(f"The development set of {self.title} is empty: there is nothing to score.")
        values = {name: METRICS[name](predictions, references) for name in self.metrics}
        return values | {"score": sum(values.values()) / len(values)}


Row = tuple[str, str | None, int | float]
"""First sentence, second sentence, label or score."""


def parse_rows(
    rows: Iterator[tuple[int, Callable[[str | int], Any]]], table: Table, task: SentenceTask, where: str
) -> Iterator[Row]:
    """Turn rows of a table into rows of a task.

    Args:
        rows: number of the row or line, and what returns its value in a column.
        table: where the columns are.
        task: for its labels.
        where: the file or dataset, for messages.

    Raises:
        PotstillError: a value is missing, a label is not the task's, or a score no number; the row is named.
    """
    for number, value in rows:
        pair = None if table.pair is None else _sentence(value(table.pair), where, number)
        yield _sentence(value(table.text), where, number), pair, _label(value(table.label), table, task, where, number)


def _sentence(value: Any, where: str, number: int) -> str:
    if not isinstance(value, str):
        raise PotstillError(f"{where}, row {number}: a sentence was expected, not {value!r}.")
    return value


def _label(value: Any, table: Table, task: SentenceTask, where: str, number: int) -> int | float:
    if table.labels is None:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise PotstillError(
                f"{where}, row {number}: the score of {task.title} is {value!r}, not a number."
            ) from None
    label = table.labels.get(str(value))
    if label is None:
        known = ", ".join(table.labels)
        raise PotstillError(
            f"{where}, row {number}: the label is {str(value)!r}, but {task.title} has {known}; correct the row."
        )
    return label
