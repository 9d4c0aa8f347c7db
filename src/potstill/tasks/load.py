"""A split of a sentence task: from a local folder, in one of the forms it may have there, or from the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from potstill.corpus.lines import decoded_lines, open_hashed, unreadable
from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line
from potstill.tasks.sentence import Row, SentenceTask, Table, parse_rows

ENDINGS = (*(f"{kind}{packed}" for kind in (".tsv", ".jsonl") for packed in ("", ".gz", ".xz", ".zst")), ".parquet")

NumberedRow = tuple[int, Callable[[str | int], Any]]
"""Number of a line or row from 1, and what returns its value in a column."""


class TaskDataAbsentError(PotstillError):
    """There is no data of a task in the folder given."""


def load_split(
    task: SentenceTask, split: str, task_data: str | None = None, option: str = "--task_data"
) -> datasets.Dataset:
    """Return the rows of a split.

    Args:
        task: of `GLUE`, or `IMDB`.
        split: one of the task's own names: `train` or one of `task.dev`.
        task_data: a folder that holds `SPLIT.tsv` (as the official download has it), `SPLIT.jsonl` or `SPLIT.parquet`
            (with the columns that the hub's dataset has), compressed or not, in a folder named after the task or
            itself; the hub's dataset if not given.
        option: that names the folder, for messages.

    Returns:
        Columns `text`, `pair` (for tasks on pairs) and `label`, a `ClassLabel` or a float.

    Raises:
        TaskDataAbsentError: the folder has no file of that split.
        PotstillError: the data cannot be read or is not the task's; file and row are named.
    """
    rows = _hub_rows(task, split, option) if task_data is None else _local_rows(task, split, Path(task_data), option)
    texts, pairs, labels = [], [], []
    for text, pair, label in rows:
        texts.append(text)
        pairs.append(pair)
        labels.append(label)
    kind = datasets.Value("float32") if task.is_regression else datasets.ClassLabel(names=list(task.labels))
    columns: dict[str, Any] = {"text": texts} | ({} if task.hub.pair is None else {"pair": pairs}) | {"label": labels}
    features = {name: datasets.Value("string") for name in columns} | {"label": kind}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def find_split(task: SentenceTask, split: str, folder: Path, option: str = "--task_data") -> Path:
    """Return the file that holds a split.

    Raises:
        TaskDataAbsentError: there is none.
        PotstillError: the folder does not exist.
    """
    if not folder.is_dir():
        raise PotstillError(f"{option} {folder} is not a folder: name the one that holds the tasks' data.")
    names = dict.fromkeys((split, (task.hub_splits or {}).get(split, split)))
    inside = [folder / name for name in dict.fromkeys((task.title, task.name, task.title.lower(), task.title.upper()))]
    # A folder of one task may be named itself, but not one of several, where the file would be another task's.
    for place in [*inside, folder]:
        for name in names:
            for ending in ENDINGS:
                if (path := place / f"{name}{ending}").is_file():
                    return path
    raise TaskDataAbsentError(f"{folder} has no data of {task.title}: no {task.title}/{split}.tsv, .jsonl or .parquet.")


def _local_rows(task: SentenceTask, split: str, folder: Path, option: str) -> Iterator[Row]:
    path = find_split(task, split, folder, option)
    kind = next(suffix for suffix in reversed(path.suffixes) if suffix in (".tsv", ".jsonl", ".parquet"))
    if kind == ".tsv":
        return parse_rows(_tsv_rows(str(path), task.official), task.official, task, str(path))
    rows = _jsonl_rows(str(path)) if kind == ".jsonl" else _parquet_rows(str(path))
    return parse_rows(rows, task.hub, task, str(path))


def _tsv_rows(path: str, table: Table) -> Iterator[NumberedRow]:
    """Yield the rows of a table whose fields are separated by tabs and never quoted: a quotation mark is one."""
    places: dict[str | int, int] | None = None
    for number, line in _lines(path):
        fields = line.split("\t")
        if places is None:
            places = _places(path, fields, table)
            if table.has_header:
                continue
        needed = max(places.values()) + 1
        if len(fields) < needed:
            raise PotstillError(
                f"{path}, line {number}, has {len(fields)} columns where {needed} are needed: tabs separate them."
            )
        yield number, dict(zip(places, (fields[place] for place in places.values()), strict=True)).__getitem__


def _places(path: str, first: list[str], table: Table) -> dict[str | int, int]:
    """Return the positions of the columns of a task, for which the first line is read if it is a header."""
    places: dict[str | int, int] = {}
    for column in (table.text, table.pair, table.label):
        if isinstance(column, int):
            places[column] = column
        elif column is not None and column in first:
            places[column] = first.index(column)
        elif column is not None:
            raise PotstillError(
                f"{path} has no column {column!r}, only {', '.join(map(repr, first))}: is it another task's?"
            )
    return places


def _jsonl_rows(path: str) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PotstillError(f"{path}, line {number}, is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise PotstillError(f"{path}, line {number}, is not a JSON object.")
        yield number, _getter(row, path, number)


def _parquet_rows(path: str) -> Iterator[NumberedRow]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from error
    for number, row in enumerate(rows, 1):
        yield number, _getter(row, path, number)


def _hub_rows(task: SentenceTask, split: str, option: str) -> Iterator[Row]:
    name = (task.hub_splits or {}).get(split, split)
    where = f"the dataset {task.hub_name}" + (f" ({task.hub_config})" if task.hub_config else "")
    try:
        with quiet_hub():
            dataset = datasets.load_dataset(task.hub_name, task.hub_config, split=name)
    except Exception as error:  # of almost any type
        raise PotstillError(
            f"{where} cannot be opened on the hub: {first_line(error)}; name a local folder with {option}."
        ) from error
    rows = ((number, _getter(row, where, number)) for number, row in enumerate(dataset, 1))
    return parse_rows(rows, task.hub, task, where)


def _getter(row: dict[str, Any], where: str, number: int) -> Callable[[str | int], Any]:
    def value(column: str | int) -> Any:
        if column not in row:
            raise PotstillError(
                f"{where}, row {number}, has no {column!r}, only {', '.join(map(repr, row)) or 'nothing at all'}."
            )
        return row[column]

    return value


def _lines(path: str) -> Iterator[tuple[int, str]]:
    file = open_hashed(path)
    with file:
        for number, line in decoded_lines(path, file):
            if isinstance(line, UnicodeDecodeError):
                raise PotstillError(f"{path}, line {number}, is not UTF-8: {line.reason}.")
            yield number, line
