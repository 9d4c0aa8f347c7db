"""Rows of a user's file: lines of text, JSON objects, rows of parquet; and what is done about those that are bad."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.corpus.lines import decoded_lines, open_hashed, unreadable
from potstill.errors import PotstillError, first_line

OnBadRows = Literal["stop", "skip"]
ON_BAD_ROWS: tuple[OnBadRows, ...] = get_args(OnBadRows)

PACKED = ("", ".gz", ".xz", ".zst")
"""Endings that a compressed file adds to its name."""

NumberedRow = tuple[int, dict[Any, Any]]
"""Number of a line or row from 1, and its values by column."""


@dataclass
class BadRows:
    """Rows that cannot be used: the first one stops the reading, or all of them are left out and counted.

    Attributes:
        on_bad_rows: ``stop`` or ``skip``.
        count: rows left out so far.
        first: what is wrong with the first of them.
    """

    on_bad_rows: OnBadRows = "stop"
    count: int = 0
    first: str = ""

    def add(self, what: str) -> None:
        """Count a row.

        Args:
            what: names the file and the row, and says what is wrong, without a stop.

        Raises:
            PotstillError: bad rows are to stop the reading.
        """
        if self.on_bad_rows == "stop":
            raise PotstillError(f"{what}; correct the row, or leave such rows out with --on_bad_rows skip.")
        self.count += 1
        self.first = self.first or what

    def tell(self, where: str, left: int) -> None:
        """Say on stderr how many rows were left out, if any.

        Args:
            where: the file.
            left: rows that remain.

        Raises:
            PotstillError: no row remains, so that all of the file is bad rather than some of its rows.
        """
        if self.count and not left:
            raise PotstillError(f"{where}: all {self.count:,} rows are bad. {self.first}.")
        if self.count:
            say(f"{where}: {self.count:,} bad rows are left out. {self.first}.")


def say(text: str) -> None:
    """Print a line to stderr, in one of the processes that a launcher started."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def text_lines(path: str, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line; blank lines at the end of the file are none.

    Raises:
        PotstillError: the file cannot be read; or a line is not UTF-8, unless `bad` takes it.
    """
    blank: list[tuple[int, str]] = []
    with open_hashed(path) as file:
        for number, line in decoded_lines(path, file):
            if isinstance(line, UnicodeDecodeError):
                bad.add(f"{path}, line {number}, is not UTF-8: {line.reason}")
            elif not line.strip():
                blank.append((number, line))
            else:
                yield from blank
                blank.clear()
                yield number, line


def json_rows(path: str, bad: BadRows) -> Iterator[NumberedRow]:
    """Yield the objects of a file of JSON lines; blank lines are none.

    Raises:
        PotstillError: the file cannot be read; or a line is no JSON object, unless `bad` takes it.
    """
    for number, line in text_lines(path, bad):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a RecursionError where it is nested a thousand deep
            bad.add(f"{path}, line {number}, is not JSON: {first_line(error)}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add(f"{path}, line {number}, is not a JSON object")


def parquet_rows(path: str) -> list[NumberedRow]:
    """Return the rows of a parquet file.

    Raises:
        PotstillError: the file cannot be read.
    """
    try:
        return list(enumerate(pq.read_table(path).to_pylist(), 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def named_classes(path: str) -> dict[str, list[str]]:
    """Return the names that a parquet file of `datasets` gives the class numbers in its columns, by column."""
    if not path.endswith(".parquet"):
        return {}
    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inside = {column: feature.get("feature", feature) for column, feature in features.items()}
        return {column: list(map(str, feature["names"])) for column, feature in inside.items() if "names" in feature}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # the rows can do without, and what cannot be read is told by who reads them


def rows_of(path: str, bad: BadRows) -> Iterable[NumberedRow]:
    """Return the rows of a `.parquet` file, or of JSON lines under any other name."""
    return parquet_rows(path) if path.endswith(".parquet") else json_rows(path, bad)


def columns_of(rows: Iterable[NumberedRow]) -> dict[Any, None]:
    """Return the columns that any of the rows has, in order."""
    return dict.fromkeys(column for _, row in rows for column in row)


def tell_unread(where: str, columns: Iterable[Any], known: Iterable[Any]) -> None:
    """Say on stderr which columns of a file nothing is read from.

    Args:
        where: the file.
        columns: that it has.
        known: columns that are read, and those that are known to be of no use here.
    """
    known = set(known)
    unread = [repr(column) for column in columns if column not in known]
    if unread:
        plural = "s" * (len(unread) > 1)
        say(f"{where}: nothing is read from the column{plural} {', '.join(unread)}.")


def text_fault(value: Any, what: str = "text") -> str | None:
    """Say what is wrong with a value that should be text, or what else it is called; None if it is text."""
    if not isinstance(value, str):
        return f"{what} was expected, not {value!r}"
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return f"{what} holds half a surrogate pair, which is no character"
    return None
