"""Read the text column of Parquet files, `datasets` folders and hub datasets."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.corpus.arrow_files import check_dataset_folder, check_offsets
from potstill.corpus.lines import BYTES_PER_LINE, MAX_DOCUMENT_BYTES, check_unpacked, too_long, unreadable
from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line
from potstill.hub_access import hub_or_cache
from potstill.small_files import check_regular
from potstill.wording import counted

ROWS = 64
"""The largest number of rows decoded at a time. It is small, because one row may hold megabytes."""

BATCH_BYTES = 2**30
"""The largest size that the rows of a Parquet file decoded at a time may have in the worst case."""

Row = tuple[int, Any]
"""Number of the row, from 1, and the value of its text column."""


def parquet_values(path: str, column: str) -> Iterator[Row]:
    """Yield the values of one column of a Parquet file.

    Raises:
        PotstillError: the file is damaged, has no such column, or unpacks to much more than text can be.
    """
    try:
        check_regular(path)
        # Pre-buffering would hold a whole row group in memory, and a row group may be large.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            check_column(path, column, file.schema_arrow.names)
            rows = rows_at_a_time(path, file.metadata, column)
            unpacked, stored = 0, Path(path).stat().st_size
            for number, value, size in _values(path, file.iter_batches(batch_size=rows, columns=[column]), column):
                unpacked += size + BYTES_PER_LINE
                check_unpacked(path, unpacked, stored)
                yield number, value
    except (pa.ArrowException, OSError, MemoryError, UnicodeError) as error:
        raise unreadable(path, error) from error


def rows_at_a_time(path: str, metadata: Any, column: str | None = None) -> int:
    """Return how many rows of a Parquet file may be decoded at a time so that they take at most `BATCH_BYTES`.

    Args:
        path: of the file.
        metadata: of the file.
        column: the column that is decoded; None for all of them.

    Raises:
        PotstillError: a row is too large.

    A value that is stored once may be repeated in each row. It is at most as large as all data of its row group.
    """
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if column is None or f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )
        if size > MAX_DOCUMENT_BYTES * max(group.num_rows, 1):
            raise too_long(f"{path}, a row of row group {number + 1}", MAX_DOCUMENT_BYTES)
        largest = max(largest, size)
    return min(max(BATCH_BYTES // largest, 1), ROWS)


def saved_dataset(folder: str | Path) -> Any:
    """Return the `datasets.Dataset` or `datasets.DatasetDict` in a folder that it was saved to.

    Raises:
        PotstillError: the folder is damaged, compressed inside, or names files outside of it.
    """
    import datasets

    try:
        check_dataset_folder(Path(folder))
        return datasets.load_from_disk(str(folder))
    except PotstillError:
        raise
    except Exception as error:  # of almost any type
        raise PotstillError(f"The dataset folder {folder} cannot be opened: {first_line(error)}.") from error


def open_dataset(folder: str, split: str) -> Any:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, as a `datasets.Dataset`.

    Raises:
        PotstillError: the folder is damaged or has no such split.
    """
    import datasets

    dataset = saved_dataset(folder)
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
        PotstillError: the dataset has no such column, or is damaged.
    """
    check_column(folder, column, dataset.column_names)
    rows = dataset.select_columns([column]).with_format("arrow").iter(batch_size=ROWS)
    try:
        for number, value, _ in _values(folder, checked_tables(rows), column):
            yield number, value
    except pa.ArrowException as error:
        raise unreadable(folder, error) from error


def checked_tables(tables: Iterable[Any]) -> Iterator[Any]:
    """Yield Arrow tables from a file that somebody else may have written.

    Raises:
        pyarrow.ArrowInvalid: a value lies outside of its buffers.
    """
    for table in tables:
        for column in table.columns:
            check_offsets(column)
        yield table


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
        with quiet_hub(), hub_or_cache():
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
            raise PotstillError(
                f"Reading {where} failed after {counted(number, 'row')}: {first_line(error)}."
            ) from error
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
            check_regular(path)
            with Path(path).open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise unreadable(path, error) from error
    return size, digest.hexdigest()


def _values(where: str, tables: Any, column: str) -> Iterator[tuple[int, Any, int]]:
    """Yield the number of each row, the value of a column in it, and its size in bytes; 0 for what is no text."""
    number = 0
    for table in tables:
        for value in table.column(column):
            number += 1
            value = value.value if isinstance(value, pa.DictionaryScalar) else value
            size = value.as_buffer().size if isinstance(value, _TEXTS) and value.is_valid else 0
            # Check before the copy to Python, where a character may take four times its bytes.
            if size > MAX_DOCUMENT_BYTES:
                raise too_long(f"{where}, row {number}", MAX_DOCUMENT_BYTES)
            try:
                yield number, value.as_py(), size
            except UnicodeDecodeError as error:
                yield number, error, size


_TEXTS = pa.StringScalar, pa.LargeStringScalar, pa.StringViewScalar
