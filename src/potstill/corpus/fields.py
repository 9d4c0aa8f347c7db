"""Split the lines of `.csv` and `.tsv` files into fields, quoted or not."""

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from potstill.corpus.lines import decoded_lines, open_hashed

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Ending of a file → what separates its fields."""

NumberedLine = tuple[int, str | UnicodeDecodeError]
NumberedFields = tuple[int, list[str] | Exception]
"""Number of the last line of a record, from 1, and its fields, or the reason why it has none."""

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a field may be a whole document; the lines have a limit already


def delimiter_of(path: str) -> str | None:
    """Return what separates the fields of a file, by its ending; None if it is neither `.csv` nor `.tsv`."""
    endings = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    return next((delimiter for ending, delimiter in DELIMITERS.items() if ending in endings), None)


def records(lines: Iterable[NumberedLine], delimiter: str, quoted: bool) -> Iterator[NumberedFields]:
    """Yield the fields of each record. Blank lines between records are left out.

    Args:
        lines: numbers and texts of lines, without their ends.
        delimiter: what separates the fields.
        quoted: whether a field may be in quotation marks. Such a field may hold the delimiter and line breaks, and
            quotation marks that are written twice.
    """
    number = 0
    errors: list[NumberedFields] = []

    def texts() -> Iterator[str]:
        nonlocal number
        for number, line in lines:
            if isinstance(line, UnicodeDecodeError):
                errors.append((number, line))
            else:
                yield line + "\n"

    if not quoted:
        for text in texts():
            yield from errors
            errors.clear()
            if text.strip("\r\n "):
                yield number, text[:-1].split(delimiter)
        yield from errors
        return
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            yield from errors
            return
        except csv.Error as error:
            yield number, error
            continue
        yield from errors
        errors.clear()
        if fields:
            yield number, fields


def is_quoted(path: str) -> bool:
    """Return whether the fields of a file may be in quotation marks. Those of a `.csv` file always may.

    Two conventions are in use for `.tsv` files. pandas and spreadsheets put a field in quotation marks if it holds a
    tab, a line break or a quotation mark. Other programs write fields as they are, as the data of GLUE. A file is read
    as quoted if some field begins with a quotation mark, and if all records then have equally many fields and no
    quotation mark is out of place.
    """
    delimiter = delimiter_of(path)
    if delimiter != "\t":
        return True
    with open_hashed(path) as file:
        if not any(isinstance(line, str) and _opens(line) for _, line in decoded_lines(path, file)):
            return False
    with open_hashed(path) as file:
        counts = set()
        for _, fields in records(decoded_lines(path, file), "\t", quoted=True):
            if isinstance(fields, UnicodeDecodeError):
                continue
            if isinstance(fields, Exception):
                return False
            counts.add(len(fields))
            if len(counts) > 1:
                return False
    return True


def _opens(line: str) -> bool:
    return line.startswith('"') or '\t"' in line
