"""Check Arrow streams, such as those of a `datasets` folder, that somebody else may have written.

An Arrow file is used as it lies on disk, through a memory map. So whoever wrote it decides which bytes are read: its
offsets may lead outside of it, and compressed parts are unpacked to any size.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa

from potstill.errors import PotstillError, first_line
from potstill.json_files import read_object
from potstill.small_files import check_regular

DATASET_FILES = ("dataset_dict.json", "state.json", "dataset_info.json")

_HEADER, _DATA, _COMPRESSION = 2, 1, 3
"""Numbers of fields in the metadata: Message.header, DictionaryBatch.data and RecordBatch.compression."""


def check_dataset_folder(folder: Path) -> None:
    """Check a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, before `datasets` opens it.

    Raises:
        PotstillError: a file of it is damaged or compressed inside, or it names a file outside of it.
        OSError: a file cannot be read.
    """
    described = {name: read_object(folder / name, "The file") for name in DATASET_FILES if (folder / name).is_file()}
    splits = described.get("dataset_dict.json", {}).get("splits") or []
    files = described.get("state.json", {}).get("_data_files") or []
    names = [*splits, *(file.get("filename") if isinstance(file, dict) else None for file in files)]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise PotstillError(f"The dataset folder {folder} names {name!r}, which is no file in it: save it again.")
        if (folder / name).is_dir():
            check_dataset_folder(folder / name)
        elif (folder / name).exists():  # datasets says which one is missing
            check_stored_plainly(folder / name)


def check_stored_plainly(path: str | Path) -> None:
    """Make sure that no part of an Arrow stream is compressed. Neither `datasets` nor `prepare` writes such files.

    Raises:
        PotstillError: a part is compressed, or the file is no Arrow stream.
        OSError: the file cannot be read.
    """
    check_regular(path)
    try:
        with pa.memory_map(str(path)) as file:
            messages = pa.ipc.MessageReader.open_stream(file)
            for message in iter(messages.read_next_message, None):
                if message.type in ("record batch", "dictionary") and _is_compressed(message):
                    raise PotstillError(
                        f"{path} is compressed inside, so it may unpack to any size: write it again without "
                        "compression, as save_to_disk of datasets does."
                    )
    except StopIteration:
        return
    except (pa.ArrowException, OSError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, and not of pyarrow
            raise
        raise PotstillError(f"{path} is no Arrow file ({first_line(error)}): fetch or write it again.") from error


def _is_compressed(message: Any) -> bool:
    """Return whether the body of a record batch or a dictionary is compressed.

    pyarrow does not tell, so this reads the field from the metadata, which are a FlatBuffers message
    (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format).
    """
    metadata = message.metadata.to_pybytes()
    table = _table(metadata, _field(metadata, _number(metadata, 0), _HEADER))
    if message.type == "dictionary":
        table = _table(metadata, _field(metadata, table, _DATA))
    return _field(metadata, table, _COMPRESSION) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Return where a field of a table lies; None if the table does not have it."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, fields)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, fields + place)[0] if place < size else 0
    return table + offset if offset else None


def _table(metadata: bytes, field: int | None) -> int:
    """Return where the table lies that a field leads to."""
    if field is None:
        raise struct.error("a message has no content")
    return field + _number(metadata, field)


def _number(metadata: bytes, place: int) -> int:
    number: int = struct.unpack_from("<I", metadata, place)[0]
    return number


def check_offsets(column: Any) -> None:
    """Make sure that the values of a column lie within its buffers. Text need not be UTF-8.

    Args:
        column: a `pyarrow.ChunkedArray` or `Array`.

    Raises:
        pyarrow.ArrowInvalid: a value lies outside.
    """
    as_bytes = _AS_BYTES.get(column.type)
    (column if as_bytes is None else column.cast(as_bytes)).validate(full=True)


_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
