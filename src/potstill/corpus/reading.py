"""Read the documents of all sources, and count the bad and the empty ones."""

import functools
import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.corpus.fields import delimiter_of, is_quoted, records
from potstill.corpus.json_arrays import json_array
from potstill.corpus.lines import BUFFER_BYTES, MAX_DOCUMENT_BYTES, HashedFile, decoded_lines, open_hashed, too_long
from potstill.corpus.manifest import SourceRecord
from potstill.corpus.sources import Source
from potstill.corpus.tables import (
    check_column,
    dataset_files,
    dataset_values,
    hash_files,
    hub_values,
    open_dataset,
    parquet_values,
)
from potstill.errors import PotstillError, first_line
from potstill.json_files import loads
from potstill.wording import counted

SampleBy = Literal["line", "paragraph", "document"]
OnBadText = Literal["error", "skip"]

JSON_LINE_BYTES = 4 * MAX_DOCUMENT_BYTES
"""The longest line of JSON. JSON may write a character in six bytes, and a line may hold other columns too."""


@dataclass(frozen=True)
class ReadingOptions:
    """The options that define the documents in the sources; see `potstill.corpus.prepare.prepare` for each."""

    text_column: str = "text"
    sample_by: SampleBy = "line"
    dataset_config_name: str | None = None
    dataset_split: str = "train"
    on_bad_text: OnBadText = "error"


class DocumentReader:
    """One pass over the sources. Iterating yields each document as UTF-8.

    The longest document bounds the memory. It may have `MAX_DOCUMENT_BYTES`; a longer one is an error as soon as that
    many bytes of it have been read. In `.txt` files a document is a line, a paragraph or a file, as `sample_by` says.

    Attributes:
        documents: documents yielded so far.
        bad_text: documents left out so far because they are not UTF-8.
        empty: documents left out so far because they are null or blank.
        records: one record for each source that was read to its end.
    """

    def __init__(self, sources: list[Source], options: ReadingOptions) -> None:
        self.sources = sources
        self.options = options
        self.documents = 0
        self.bad_text = 0
        self.empty = 0
        self.records: list[SourceRecord] = []
        self._file: HashedFile | None = None

    def __iter__(self) -> Iterator[bytes]:
        for source in self.sources:
            before = self.documents
            match source.kind:
                case "text" | "json" | "fields":
                    size, sha256 = yield from self._line_file(source)
                case "parquet":
                    yield from self._documents(source, "row", parquet_values(source.name, self.options.text_column))
                    size, sha256 = hash_files([source.name])
                case "dataset":
                    dataset = open_dataset(source.name, self.options.dataset_split)
                    values = dataset_values(source.name, dataset, self.options.text_column)
                    yield from self._documents(source, "row", values)
                    size, sha256 = hash_files(dataset_files(dataset))
                case "hub":
                    size, sha256 = yield from self._hub(source)
            self._file = None
            self.records.append(SourceRecord(source.name, size, sha256, self.documents - before))

    def share_read(self) -> float | None:
        """Return the share of the bytes of all files that is read; None if a source has no file here.

        A Parquet file or a folder of a data set counts only when it is read to its end.
        """
        whole = self._bytes
        if not whole:
            return None
        done = sum(record.bytes for record in self.records) + (0 if self._file is None else self._file.size)
        return min(1.0, done / whole)

    @functools.cached_property
    def _bytes(self) -> int:
        """Size of all files; 0 if a source has no file here."""
        paths = [Path(source.name) for source in self.sources if source.kind != "hub"]
        if len(paths) < len(self.sources):
            return 0
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
        return sum(file.stat().st_size for file in files)

    def passes(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield each pass over documents: the number of its first document, and all of them in order.

        A document has the same number in each pass. An empty one stands for a document that is left out of a pass.
        """
        yield 0, iter(self)

    def _line_file(self, source: Source) -> Generator[bytes, None, tuple[int, str]]:
        array = json_array(source.name)
        with open_hashed(source.name) as file:
            self._file = file
            if array is not None:
                while file.read(BUFFER_BYTES):  # so that it is hashed
                    pass
                values: Iterator[tuple[int, Any]] = _array_values(source.name, array, self.options.text_column)
                yield from self._documents(source, "row", values)
                return file.size, file.sha256()
            lines = decoded_lines(source.name, file, MAX_DOCUMENT_BYTES if source.kind == "text" else JSON_LINE_BYTES)
            column = self.options.text_column
            if source.kind == "text":
                values = _text_values(source.name, lines, self.options.sample_by)
            elif source.kind == "fields":
                values = _field_values(source.name, lines, column)
            else:
                values = _json_values(source.name, lines, column)
            yield from self._documents(source, "line", values)
            return file.size, file.sha256()

    def _hub(self, source: Source) -> Generator[bytes, None, tuple[int, str]]:
        # A streamed dataset has no files here, so the size and the hash are those of its text.
        digest, size = hashlib.sha256(), 0
        options = self.options
        rows = hub_values(source.name, options.dataset_config_name, options.dataset_split, options.text_column)
        for document in self._documents(source, "row", rows):
            digest.update(document)
            size += len(document)
            yield document
        return size, digest.hexdigest()

    def _documents(self, source: Source, unit: str, values: Iterator[tuple[int, Any]]) -> Iterator[bytes]:
        for number, value in values:
            if isinstance(value, str):
                if not value or value.isspace():
                    self.empty += 1
                    continue
                try:
                    document = value.encode()
                except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair
                    self._bad_text(source, unit, number, error)
                    continue
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise too_long(f"{source.name}, {unit} {number}", MAX_DOCUMENT_BYTES)
                self.documents += 1
                yield document
            elif value is None:
                self.empty += 1
            elif isinstance(value, UnicodeError):
                self._bad_text(source, unit, number, value)
            else:
                raise PotstillError(
                    f"{source.name}, {unit} {number}: the column {self.options.text_column!r} holds "
                    f"{type(value).__name__}, not text: choose another with --text_column."
                )

    def _bad_text(self, source: Source, unit: str, number: int, error: UnicodeError) -> None:
        if self.options.on_bad_text == "error":
            raise PotstillError(
                f"{source.name}, {unit} {number} is not UTF-8 text: convert the file, "
                "or leave such documents out with --on_bad_text skip."
            ) from error
        self.bad_text += 1


def _array_values(path: str, rows: list[Any], column: str) -> Iterator[tuple[int, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise PotstillError(
                f"{path}, row {number} is a JSON {type(row).__name__}, not an object: write an array of objects."
            )
        if column not in row:
            check_column(f"{path}, row {number}", column, list(row))
        yield number, row[column]


def _field_values(
    path: str, lines: Iterator[tuple[int, str | UnicodeDecodeError]], column: str
) -> Iterator[tuple[int, Any]]:
    """Yield the values of a column of a `.csv` or `.tsv` file, whose first line names the columns."""
    header: list[str] | None = None
    for number, fields in records(lines, delimiter_of(path) or ",", is_quoted(path)):
        if isinstance(fields, UnicodeDecodeError):
            yield number, fields
        elif isinstance(fields, Exception):
            raise PotstillError(f"{path}, line {number} is not CSV: {first_line(fields)}: correct the row.")
        elif header is None:
            check_column(path, column, fields)
            header = fields
        elif len(fields) != len(header):
            raise PotstillError(
                f"{path}, line {number} has {counted(len(fields), 'column')} instead of {len(header)}: correct the row."
            )
        else:
            yield number, fields[header.index(column)]


def _json_values(
    path: str, lines: Iterator[tuple[int, str | UnicodeDecodeError]], column: str
) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        if isinstance(line, UnicodeDecodeError):
            yield number, line
            continue
        if not line or line.isspace():  # a blank line is no record
            continue
        try:
            record = loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise PotstillError(
                f"{path}, line {number} is not valid JSON ({reason}): write one object per line."
            ) from error
        if not isinstance(record, dict):
            raise PotstillError(
                f"{path}, line {number} holds a JSON {type(record).__name__}, not an object: write one object per line."
            )
        if column not in record:
            check_column(f"{path}, line {number}", column, list(record))
        yield number, record[column]


def _text_values(
    path: str, lines: Iterator[tuple[int, str | UnicodeDecodeError]], sample_by: SampleBy
) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    if sample_by == "line":
        yield from lines
        return
    group: list[tuple[int, str | UnicodeDecodeError]] = []
    length = 0
    for number, line in lines:
        if sample_by == "paragraph" and isinstance(line, str) and (not line or line.isspace()):
            if group:
                yield _joined(group)
                group, length = [], 0
        else:
            group.append((number, line))
            length += 1 + (len(line) if isinstance(line, str) else 0)
            if length > MAX_DOCUMENT_BYTES:  # a character has a byte or more
                raise too_long(f"{path}, the {sample_by} from line {group[0][0]} on,", MAX_DOCUMENT_BYTES)
    if group:
        yield _joined(group)


def _joined(group: list[tuple[int, str | UnicodeDecodeError]]) -> tuple[int, str | UnicodeDecodeError]:
    """Return one document of consecutive lines. If one line is bad, the document is bad."""
    texts = []
    for number, line in group:
        if isinstance(line, UnicodeDecodeError):
            return number, line
        texts.append(line)
    return group[0][0], "\n".join(texts)
