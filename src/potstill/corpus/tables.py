"""Read the text column of Parquet files, `datasets` folders and hub datasets."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.corpus.lines import MAX_DOCUMENT_BYTES, too_long, unreadable
from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line

ROWS = 64
"""The largest number of rows decoded at a time. It is small, because one row may hold megabytes."""

BATCH_BYTES = 2**30
"""The largest size that the rows of a Parquet file decoded at a time may have in the worst case."""

Row = tuple[int, Any]
"""Number of the row, from 1, and the value of its text column."""


def parquet_values(path: str, column: str) -> Iterator[Row]:
    """Yield the values of one column of a Parquet file.

    Raises:
        PotstillError: the file is damaged or has no such column.
    """
    try:
        # Pre-buffering would hold a whole row group in memory, and a row group may be large.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            check_column(path, column, file.schema_arrow.names)
            rows = _rows_at_a_time(path, file.metadata, column)
            yield from _values(path, file.iter_batches(batch_size=rows, columns=[column]), column)
    except (pa.ArrowException, OSError, MemoryError, UnicodeError) as error:
        raise unreadable(path, error) from error


def _rows_at_a_time(path: str, metadata: Any, column: str) -> int:
    """Return how many rows may be decoded at a time so that they take at most `BATCH_BYTES`.

    A value that is stored once may be repeated in each row. It is at most as large as all data of its row group.
    """
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )
        if size > MAX_DOCUMENT_BYTES * max(group.num_rows, 1):
            raise too_long(f"{path}, a row of row group {number + 1}", MAX_DOCUMENT_BYTES)
        largest = max(largest, size)
    return min(max(BATCH_BYTES // largest, 1), ROWS)


def open_dataset(folder: str, split: str) -> Any:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, as a `datasets.Dataset`.

    Raises:
        PotstillError: the folder is damaged or has no such split.
    """
    import datasets

    try:
        dataset = datasets.load_from_disk(folder)
    except Exception as error:  # of almost any type
        raise PotstillError(f"The dataset folder {folder} cannot be opened: {first_line(error)}.") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise PotstillError(
                f"The dataset folder {folder} has no split {split!r}, only {', '.join(dataset)}: "
                "choose one with --dataset_split."
            )
        dataset = dataset[split]
    return dataset


def dataset_values(folder: str, dataset: Any, column: str) -> Iterator[Row]:
    """Yield the values of one column of an open `datasets.Dataset`.

    Raises:
        PotstillError: the dataset has no such column.
    """
    check_column(folder, column, dataset.column_names)
    yield from _values(folder, dataset.select_columns([column]).with_format("arrow").iter(batch_size=ROWS), column)


def dataset_files(dataset: Any) -> list[str]:
    """Return the Arrow files that hold an open `datasets.Dataset`."""
    return [file["filename"] for file in dataset.cache_files]


def hub_values(name: str, config: str | None, split: str, column: str) -> Iterator[Row]:
    """Stream the values of one column of a dataset on the hub.

    Raises:
        PotstillError: there is no such dataset, configuration, split or column, or the hub cannot be reached.
    """
    import datasets

    where = f"the dataset {name}" + (f" ({config})" if config else "")
    try:
        with quiet_hub():
            rows = iter(datasets.load_dataset(name, config, split=split, streaming=True))
    except Exception as error:  # of almost any type
        raise PotstillError(
            f"There is no file or folder {name}, and {where} cannot be opened on the hub: {first_line(error)}."
        ) from error
    number = 0
    while True:
        try:
            with quiet_hub():
                row = next(rows, None)
        except Exception as error:
            raise PotstillError(f"Reading {where} failed after {number} rows: {first_line(error)}.") from error
        if row is None:
            return
        number += 1
        if column not in row:
            check_column(where, column, list(row))
        yield number, row[column]


def check_column(where: str, column: str, columns: list[str]) -> None:
    """Make sure that a column exists.

    Raises:
        PotstillError: the column is missing; the message names the existing ones.
    """
    if column not in columns:
        raise PotstillError(
            f"{where} has no column {column!r}, only {', '.join(map(repr, columns)) or 'none at all'}: "
            "choose one with --text_column."
        )


def hash_files(paths: list[str]) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of files, as if they were one file.

    Raises:
        PotstillError: a file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise unreadable(path, error) from error
    return size, digest.hexdigest()


def _values(where: str, tables: Any, column: str) -> Iterator[Row]:
    number = 0
    for table in tables:
        for value in table.column(column):
            number += 1
            # Check before the copy to Python, where a character may take four times its bytes.
            if isinstance(value, _TEXTS) and value.is_valid and value.as_buffer().size > MAX_DOCUMENT_BYTES:
                raise too_long(f"{where}, row {number}", MAX_DOCUMENT_BYTES)
            try:
                yield number, value.as_py()
            except UnicodeDecodeError as error:
                yield number, error


_TEXTS = pa.StringScalar, pa.LargeStringScalar, pa.StringViewScalar
