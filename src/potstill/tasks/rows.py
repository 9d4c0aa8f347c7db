"""Read the rows of a user's file (lines of text, JSON objects, rows of parquet), and handle bad rows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.corpus.fields import records
from potstill.corpus.json_arrays import json_array
from potstill.corpus.lines import BYTES_PER_LINE, check_unpacked, decoded_lines, open_hashed, unreadable
from potstill.corpus.tables import rows_at_a_time
from potstill.errors import PotstillError, first_line, shown
from potstill.json_files import loads
from potstill.small_files import check_regular
from potstill.wording import agreeing, counted

OnBadRows = Literal["stop", "skip"]
ON_BAD_ROWS: tuple[OnBadRows, ...] = get_args(OnBadRows)

PACKED = ("", ".gz", ".xz", ".zst")
"""Endings that compression adds to the name of a file."""

NumberedRow = tuple[int, dict[Any, Any]]
"""Number of a line or row, from 1, and its values by column."""


@dataclass
class BadRows:
    """Rows that cannot be used. Either the first one stops the reading, or all of them are left out and counted.

    Attributes:
        on_bad_rows: ``stop`` or ``skip``.
        count: number of rows left out so far.
        first: the message about the first of them.
    """

    on_bad_rows: OnBadRows = "stop"
    count: int = 0
    first: str = ""

    def add(self, message: str, count: int = 1, remedy: str | None = None) -> None:
        """Count a row, or several.

        Args:
            message: names the file and the row, and says what is wrong, without a full stop.
            count: the number of rows.
            remedy: what to do, in words; None for the correction of the rows.

        Raises:
            PotstillError: `on_bad_rows` is ``stop``.
        """
        if self.on_bad_rows == "stop":
            remedy = remedy or f"correct {'the row' if count == 1 else 'them'}"
            raise PotstillError(f"{message}; {remedy}, or leave such rows out with --on_bad_rows skip.")
        self.count += count
        self.first = self.first or message

    def report(self, where: str, left: int) -> None:
        """Print to stderr how many rows were left out, if any.

        Args:
            where: the file.
            left: number of rows that remain.

        Raises:
            PotstillError: all rows of the file are bad.
        """
        if self.count and not left:
            which = agreeing(self.count, "the only row is", f"all {self.count:,} rows are")
            raise PotstillError(f"{where}: {which} bad. {self.first}.")
        if self.count:
            print_message(
                f"{where}: {counted(self.count, 'bad row')} {agreeing(self.count, 'is', 'are')} left out. {self.first}."
            )


def print_message(text: str) -> None:
    """Print a line to stderr, in only one of the processes that a launcher started."""
    if os.environ.get("RANK", "0") == "0":
        print(shown(text), file=sys.stderr, flush=True)


def text_lines(path: str, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line. Blank lines at the end of the file do not count.

    Raises:
        PotstillError: the file cannot be read; or a line is not UTF-8, unless `bad` takes it.
    """
    blank: list[tuple[int, str]] = []
    with open_hashed(path) as file:
        for number, line in decoded_lines(path, file):
            if isinstance(line, UnicodeDecodeError):
                bad.add(
                    f"{path}, line {number}, is not UTF-8: {line.reason}",
                    remedy="convert the file to UTF-8, or correct the row",
                )
            elif not line.strip():
                blank.append((number, line))
            else:
                yield from blank
                blank.clear()
                yield number, line


def json_rows(path: str, bad: BadRows) -> Iterator[NumberedRow]:
    """Yield the objects of a file of JSON lines, or of a `.json` file that holds one array. Blank lines do not count.

    Raises:
        PotstillError: the file cannot be read; or a line is no JSON object, unless `bad` takes it.
    """
    array = json_array(path)
    if array is not None:
        for number, row in enumerate(array, 1):
            if isinstance(row, dict):
                yield number, row
            else:
                bad.add(f"{path}, row {number}, is not a JSON object")
        return
    for number, line in text_lines(path, bad):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except (ValueError, RecursionError) as error:  # deeply nested JSON raises a RecursionError
            bad.add(f"{path}, line {number}, is not JSON: {first_line(error)}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add(f"{path}, line {number}, is not a JSON object")


def csv_rows(
    path: str, bad: BadRows, columns: Sequence[str] | None = None, delimiter: str = ",", quoted: bool = True
) -> Iterator[NumberedRow]:
    """Yield the rows of a file of separated fields, by the names in its first line. Fields may be quoted.

    Blank lines do not count. The number of a row is that of its last line, because a quoted field may have several.

    Args:
        path: the file.
        bad: takes the rows that cannot be used.
        columns: names of the columns of a file whose first line does not name them.
        delimiter: what separates the fields.
        quoted: whether fields may be quoted.

    Raises:
        PotstillError: the file cannot be read or has two columns of one name; or a row has more or fewer fields than
            the first line or a quotation mark that is not closed, unless `bad` takes it.
    """
    header = None if columns is None else list(columns)
    first = True
    for number, fields in records(text_lines(path, bad), delimiter, quoted):
        if isinstance(fields, Exception):
            if "new-line character" in str(fields):  # Python's own words ask for a mode of opening the file
                raise PotstillError(f"{path} ends its lines with carriage returns alone: save it with line feeds.")
            bad.add(f"{path}, line {number}, is not CSV: {first_line(fields)}")
            continue
        if first and header is not None and _same_names(fields, header):
            raise PotstillError(f"{path} names its columns in its first line: leave --columns out.")
        first = False
        if header is None:
            header = fields
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise PotstillError(f"{path} has {header.count(twice)} columns {twice!r}: keep only one of them.")
        elif len(fields) != len(header):
            columns_of_row = counted(len(fields), "column")
            bad.add(f"{path}, line {number}, has {columns_of_row} instead of {len(header)}")
        else:
            yield number, dict(zip(header, fields, strict=True))


def _same_names(fields: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether a line names these columns. Capitals and blanks make no difference."""
    return [field.strip().casefold() for field in fields] == [name.strip().casefold() for name in names]


def parquet_rows(path: str) -> list[NumberedRow]:
    """Return the rows of a parquet file.

    Raises:
        PotstillError: the file cannot be read, or unpacks to much more than text can be.
    """
    found: list[dict[Any, Any]] = []
    try:
        check_regular(path)
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            unpacked, stored = 0, os.stat(path).st_size
            for batch in file.iter_batches(batch_size=rows_at_a_time(path, file.metadata)):
                plain = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in batch]
                unpacked += sum(part.nbytes + BYTES_PER_LINE * len(part) for part in plain)
                check_unpacked(path, unpacked, stored)
                found += batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error) from error
    return list(enumerate(found, 1))


def named_classes(path: str) -> dict[str, list[str]]:
    """Return column → names of its classes, as `datasets` records them in a parquet file; empty for other files."""
    if not path.endswith(".parquet"):
        return {}
    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inside = {column: feature.get("feature", feature) for column, feature in features.items()}
        return {column: list(map(str, feature["names"])) for column, feature in inside.items() if "names" in feature}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # the names are optional, and reading the rows will report a damaged file


def rows_of(path: str, bad: BadRows) -> Iterable[NumberedRow]:
    """Return the rows of a `.parquet` file; a file with any other name is read as JSON lines."""
    return parquet_rows(path) if path.endswith(".parquet") else json_rows(path, bad)


def columns_of(rows: Iterable[NumberedRow]) -> dict[Any, None]:
    """Return the columns of all rows, in order."""
    return dict.fromkeys(column for _, row in rows for column in row)


def report_unread(where: str, columns: Iterable[Any], known: Iterable[Any]) -> None:
    """Print to stderr which columns of a file are not read.

    Args:
        where: the file.
        columns: the columns of the file.
        known: columns that are read, and columns that are known to be unused.
    """
    known = set(known)
    unread = [repr(column) for column in columns if column not in known]
    if unread:
        plural = "s" * (len(unread) > 1)
        print_message(f"{where}: nothing is read from the column{plural} {', '.join(unread)}.")


def text_fault(value: Any, what: str = "text") -> str | None:
    """Return what is wrong with a value that should be text, or None if it is text. `what` names the value."""
    if not isinstance(value, str):
        return f"{what} was expected, not {value!r}"
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        return f"{what} holds half a surrogate pair, which is no character"
    return None
