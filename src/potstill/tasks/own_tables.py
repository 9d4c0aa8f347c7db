"""Read a user's table of any kind: `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, a `datasets` folder or a hub id."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from potstill.corpus.fields import delimiter_of, is_quoted
from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line
from potstill.tasks.rows import (
    PACKED,
    BadRows,
    NumberedRow,
    columns_of,
    csv_rows,
    named_classes,
    print_message,
    rows_of,
)

TRAIN, DEV = "train", "dev"
HUB_SPLITS = {TRAIN: ("train",), DEV: ("validation", "dev", "test")}

TABLES = (*(kind + packed for kind in (".csv", ".tsv", ".jsonl", ".json") for packed in PACKED), ".parquet")
"""Endings of files of rows."""


@dataclass(frozen=True)
class OwnTable:
    """The rows of a file, or of a split of a dataset.

    Attributes:
        where: the file or dataset, for messages.
        rows: its rows, with the numbers that messages name.
        typed: whether it distinguishes numbers from text.
        classes: column → names of the numbers in it, as `datasets` records them.
        headless: whether its columns have names only because the user gave them.
        unit: the word for a number of `rows`.
    """

    where: str
    rows: list[NumberedRow]
    typed: bool
    classes: dict[str, list[str]]
    headless: bool = False
    unit: str = "row"

    @property
    def columns(self) -> list[Any]:
        """The columns of all rows, in order."""
        return list(columns_of(self.rows))

    def column(self, given: str | None, usual: Sequence[str], option: str) -> str:
        """Return the column that holds a value of a task.

        Args:
            given: its name, if the user gave it.
            usual: its usual names.
            option: the option that gives the name, for messages.

        Raises:
            PotstillError: there is no such column; the message names the nearest one.
        """
        columns = [str(column) for column in self.columns]
        found = next((name for name in ((given,) if given else usual) if name in columns), None)
        if found is not None:
            return found
        wanted = given or usual[0]
        lower = {column.casefold(): column for column in reversed(columns)}
        near = difflib.get_close_matches(wanted.casefold(), lower, 1)
        hint = f"; the nearest is {lower[near[0]]!r}" if near else ""
        shown = ", ".join(repr(column[:40]) for column in columns[:12]) + ", …" * (len(columns) > 12)
        how = f"name the column with {option}"
        if not self.typed and not self.headless:
            how += ", or give --columns if the first line does not name the columns"
        raise PotstillError(f"{self.where} has no column {wanted!r}, only {shown or 'none at all'}{hint}: {how}.")


def open_table(source: str, split: str, columns: Sequence[str] | None, bad: BadRows) -> OwnTable:
    """Read a table.

    Args:
        source: a file, a folder that `datasets` saved, or the id of a dataset on the hub.
        split: `train` or `dev`, for datasets that have several splits.
        columns: names of the columns of a `.csv` or `.tsv` file whose first line does not name them.
        bad: takes the rows that cannot be read.

    Raises:
        PotstillError: there is no such file, its format is unknown, or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir() or not (path.exists() or _looks_like_a_path(source)):
        return _of_dataset(source, path, split, columns)
    check_file(path, TABLES, "a table", ".csv, .tsv, .jsonl, .json or .parquet")
    where = str(path)
    delimiter = delimiter_of(where)
    if delimiter is None:
        _refuse_columns(where, columns)
        table = OwnTable(where, list(rows_of(where, bad)), True, named_classes(where))
    else:
        quoted = is_quoted(where)
        rows = list(csv_rows(where, bad, columns, delimiter, quoted))
        table = OwnTable(where, rows, False, {}, columns is not None, "line")
        if delimiter == "\t" and _some_quoted(rows, quoted):
            how = "are read as quoted" if quoted else "are read as they are, quotation marks included"
            print_message(f"{where}: the fields {how}.")
    if not table.rows and not bad.count:
        raise PotstillError(f"{where} has no rows: check that it is the right file.")
    return table


def check_file(path: Path, endings: Sequence[str], what: str, in_words: str) -> None:
    """Raise a `PotstillError` if there is no such file, or if its name has none of the endings."""
    if not path.exists():
        raise PotstillError(f"There is no file {path}: check the path.")
    if not path.name.lower().endswith(tuple(endings)):
        raise PotstillError(f"{path} has no format of {what} that can be read: give {in_words}.")


def has_splits(source: str) -> bool:
    """Return whether a source is a dataset with its own splits: a saved folder of several, or a hub id."""
    path = Path(source).expanduser()
    return (path / "dataset_dict.json").is_file() or not (path.exists() or _looks_like_a_path(source))


def _some_quoted(rows: Sequence[NumberedRow], quoted: bool) -> bool:
    """Return whether the way in which a file is read makes a difference."""
    return quoted or any(value.startswith('"') for _, row in rows for value in row.values())


def _refuse_columns(where: str, columns: Sequence[str] | None) -> None:
    if columns is not None:
        raise PotstillError(f"--columns is for .csv and .tsv files, but {where} names its columns: leave it out.")


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.lower().endswith(TABLES)


def _of_dataset(source: str, path: Path, split: str, columns: Sequence[str] | None) -> OwnTable:
    where = f"the dataset {source}"
    _refuse_columns(where, columns)
    if path.is_dir() and not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise PotstillError(f"{path} is a folder that datasets did not save: name a file in it.")
    try:
        if path.is_dir():
            found: Any = datasets.load_from_disk(str(path))
        else:
            with quiet_hub():
                found = datasets.load_dataset(source)
    except Exception as error:  # of almost any type
        place = "be read" if path.is_dir() else f"be opened on the hub, and there is no file {source}"
        raise PotstillError(f"{where[0].upper()}{where[1:]} cannot {place}: {first_line(error)}.") from error
    if isinstance(found, dict):
        name = next((name for name in HUB_SPLITS[split] if name in found), None)
        if name is None:
            has, needed = ", ".join(found), " or ".join(HUB_SPLITS[split])
            raise PotstillError(f"{where[0].upper()}{where[1:]} has the splits {has}, but none called {needed}.")
        found, where = found[name], f"{where} ({name})"
    classes = {}
    for column, feature in found.features.items():
        inside = getattr(feature, "feature", feature)
        if isinstance(inside, datasets.ClassLabel):
            classes[column] = list(inside.names)
    return OwnTable(where, list(enumerate(found, 1)), True, classes)
