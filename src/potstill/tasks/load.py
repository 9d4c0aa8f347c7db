"""Load a split of a sentence task from a local folder, in one of several formats, or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line
from potstill.hub_access import hub_or_cache
from potstill.tasks.in_memory import dataset_of
from potstill.tasks.labels import in_words, match_names
from potstill.tasks.rows import (
    PACKED,
    BadRows,
    NumberedRow,
    columns_of,
    named_classes,
    report_unread,
    rows_of,
    text_lines,
)
from potstill.tasks.sentence import Row, SentenceTask, Table, parse_rows
from potstill.tasks.task import Task
from potstill.wording import counted

ENDINGS = (*(f"{kind}{packed}" for kind in (".tsv", ".jsonl") for packed in PACKED), ".parquet")
PARQUET_OF_HUB = "-00000-of-00001.parquet"
"""Ending of the hub's own files of a small dataset, after the name of the split."""

UNUSED_COLUMNS = {
    "idx",
    "index",
    "id",
    "uid",
    "genre",
    "filename",
    "year",
    "old_index",
    "source1",
    "source2",
    "promptID",
}
UNUSED_COLUMNS |= {"pairID", "qid1", "qid2", "#1 ID", "#2 ID", "title", *(f"label{number}" for number in range(1, 6))}
UNUSED_COLUMNS |= {f"sentence{number}_{kind}" for number in (1, 2) for kind in ("parse", "binary_parse")}
"""Columns of the official downloads and of the hub's datasets that no task needs."""


class TaskDataAbsentError(PotstillError):
    """The given folder holds no data of the task."""


def load_split(
    task: SentenceTask,
    split: str,
    task_data: str | None = None,
    option: str = "--task_data",
    bad: BadRows | None = None,
) -> datasets.Dataset:
    """Return the rows of a split.

    Args:
        task: declaration of the task.
        split: name of the split in the task: `train` or one of `task.dev`.
        task_data: a folder that holds `SPLIT.tsv` (as in the official download), `SPLIT.jsonl` or `SPLIT.parquet` (with
            the columns of the hub's dataset), compressed or not. The file may also lie in a subfolder with the name of
            the task. If not given, the hub's dataset is used.
        option: the option that names the folder, for messages.
        bad: takes the rows that cannot be used; if None, the first one is an error. A message on stderr names the
            columns that are not read.

    Returns:
        Columns `text`, `pair` (for tasks on pairs) and `label`, a `ClassLabel` or a float.

    Raises:
        TaskDataAbsentError: the folder has no file of that split.
        PotstillError: the data cannot be read or is not the task's; file and row are named.
    """
    bad = bad or BadRows()
    rows = (
        _hub_rows(task, split, option, bad) if task_data is None else _local_rows(task, split, task_data, option, bad)
    )
    texts, pairs, labels = ([row[place] for row in rows] for place in range(3))
    kind = datasets.Value("float32") if task.is_regression else datasets.ClassLabel(names=list(task.labels))
    columns: dict[str, Any] = (
        {"text": texts} | ({"pair": pairs} if _is_of_pairs(task, pairs) else {}) | {"label": labels}
    )
    features = {name: datasets.Value("string") for name in columns} | {"label": kind}
    return dataset_of(columns, features=datasets.Features(features))


def find_split(task: SentenceTask, split: str, folder: Path, option: str = "--task_data") -> Path:
    """Return the file that holds a split.

    Raises:
        TaskDataAbsentError: there is no such file.
        PotstillError: the folder does not exist.
    """
    if not folder.is_dir():
        raise PotstillError(f"{option} {folder} is not a folder: name the one that holds the tasks' data.")
    names = dict.fromkeys((split, (task.hub_splits or {}).get(split, split)))
    inside = [folder / name for name in dict.fromkeys((task.title, task.name, task.title.lower(), task.title.upper()))]
    # The folder itself is tried last: if it holds several tasks, a file there could be another task's.
    for place in [*inside, folder]:
        for name in names:
            for ending in (*ENDINGS, PARQUET_OF_HUB):
                if (path := place / f"{name}{ending}").is_file():
                    return path
    raise TaskDataAbsentError(
        f"{folder} has no data of {task.title}: put {task.title}/{split}.tsv, .jsonl or .parquet there."
    )


def _is_of_pairs(task: SentenceTask, pairs: list[Any]) -> bool:
    return task.hub.pair is not None and (not task.hub.pair_may_lack or any(pair is not None for pair in pairs))


def _local_rows(task: SentenceTask, split: str, folder: str, option: str, bad: BadRows) -> list[Row]:
    file = find_split(task, split, Path(folder), option)
    path = str(file)
    typed = ".tsv" not in file.suffixes
    table = task.hub if typed else task.official
    rows = list(rows_of(path, bad) if typed else tsv_rows(path, table, bad))
    names = named_classes(path).get(str(table.label))
    order = None if names is None else match_names(task.labels, names)
    if order is not None:  # the file may number the same classes in another order
        in_words(rows, table.label, [task.labels[place] for place in order])
    return _parsed(rows, table, task, path, typed, bad)


def _parsed(
    rows: list[NumberedRow], table: Table, task: SentenceTask, where: str, typed: bool, bad: BadRows
) -> list[Row]:
    found = parse_rows(rows, table, task, where, typed, bad)
    bad.report(where, len(found))
    if typed:
        report_unread(where, columns_of(rows), {table.text, table.pair, table.label, *UNUSED_COLUMNS})
    return found


def tsv_rows(path: str, table: Table, bad: BadRows) -> Iterator[NumberedRow]:
    """Yield the rows of a table with fields separated by tabs. A quotation mark has no special meaning.

    Args:
        path: the file.
        table: the columns to read.
        bad: takes a row with more or fewer fields than the others.

    Raises:
        PotstillError: the file cannot be read, or has not exactly one of each column; or a row has too many or too few
            fields and `bad` does not take it.
    """
    places: dict[str | int, int] | None = None
    columns = 0
    for number, line in text_lines(path, bad):
        fields = line.split("\t")
        if places is None:
            places = _places(path, fields, table)
            columns = len(fields) if table.has_header else max(places.values()) + 1
            if table.has_header:
                report_unread(path, (name for name in fields if name.strip()), {*places, *UNUSED_COLUMNS})
                continue
        needed = max(places.values()) + 1
        if len(fields) < needed:
            bad.add(
                f"{path}, line {number}, has {counted(len(fields), 'column')} but needs {needed}: tabs separate them"
            )
        elif any(field.strip() for field in fields[max(columns, needed) :]):
            # A tab inside a sentence moves all later fields to the next column.
            bad.add(
                f"{path}, line {number}, has {counted(len(fields), 'column')} instead of {columns}: tabs separate them"
            )
        else:
            yield number, {column: fields[place] for column, place in places.items()}


def _places(path: str, first: list[str], table: Table) -> dict[str | int, int]:
    """Return the positions of a task's columns, which the first line decides if it is a header."""
    places: dict[str | int, int] = {}
    for column in (table.text, table.pair, table.label):
        if isinstance(column, int):
            places[column] = column
        elif column is not None and column in first:
            if first.count(column) > 1:
                raise PotstillError(f"{path} has {first.count(column)} columns {column!r}: keep only one of them.")
            places[column] = first.index(column)
        elif column is not None and not (column == table.pair and table.pair_may_lack):
            raise PotstillError(
                f"{path} has no column {column!r}, only {', '.join(map(repr, first))}: give a file of this task."
            )
    return places


def no_dataset(task: Task, option: str = "--task_data") -> PotstillError:
    """Return the error for a task that has no dataset on the hub if the user names no data."""
    return PotstillError(f"{task.title} has no dataset on the hub: name its data with {option}.")


def _hub_rows(task: SentenceTask, split: str, option: str, bad: BadRows) -> list[Row]:
    if task.hub_name is None:
        raise no_dataset(task, option)
    name = (task.hub_splits or {}).get(split, split)
    where = f"the dataset {task.hub_name}" + (f" ({task.hub_config})" if task.hub_config else "")
    try:
        with quiet_hub(), hub_or_cache():
            dataset = datasets.load_dataset(task.hub_name, task.hub_config, split=name)
    except Exception as error:  # of almost any type
        raise PotstillError(
            f"{where[0].upper()}{where[1:]} cannot be opened on the hub: {first_line(error)}; name a local folder with "
            f"{option}."
        ) from error
    return _parsed(list(enumerate(dataset, 1)), task.hub, task, where, True, bad)
