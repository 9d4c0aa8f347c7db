"""A text file, compressed or not → its lines, decoded, and the hash of its bytes."""

import codecs
import gzip
import hashlib
import io
import lzma
import os
import shlex
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from potstill.corpus.sources import compression_of
from potstill.errors import PotstillError, advice, first_line

BUFFER_BYTES = 2**18

MAX_DOCUMENT_BYTES = 2**25
"""The longest document that is read, 32 MiB: ten novels. `tokenizers` takes up to 90 times as much memory for it."""

MAX_LINE_BYTES = 2**29
"""The longest line that anything reads, 512 MiB: a JSON file of a whole data set may have no line break at all."""

ZSTD_WINDOW_BYTES = 2**27
"""The largest window that pyarrow decompresses with."""


class HashedFile(io.RawIOBase):
    """A file that hashes and counts its bytes as they are read, so that a corpus is read from disk once.

    Args:
        path: the file.

    Attributes:
        size: bytes read.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close())
        self._digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return the number of bytes, 0 at the end."""
        count = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        self.size += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def sha256(self) -> str:
        """SHA-256 of the bytes read, in hexadecimal."""
        return self._digest.hexdigest()


def open_hashed(path: str) -> HashedFile:
    """Open a file to be hashed as it is read.

    Raises:
        PotstillError: it cannot be opened.
    """
    try:
        return HashedFile(path)
    except OSError as error:
        raise unreadable(path, error) from error


def decoded_lines(
    path: str, file: HashedFile, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    """Yield the number (from 1) and the text of each line, without its end; for a line that is not UTF-8, the error.

    A byte-order mark is taken off; a line may end in LF or CRLF. The whole file has been read when the last line has.

    Args:
        path: of the file, which says how it is compressed.
        file: the file, opened.
        max_bytes: the longest line that is read, which bounds the memory: a small file may unpack to one endless line.

    Raises:
        PotstillError: the file cannot be read, is truncated or damaged, or has a longer line.
    """
    number = 0
    try:
        stream = _decompressed(path, file)
        while line := stream.readline(max_bytes + 1):
            number += 1
            if len(line) > max_bytes:
                raise too_long(f"{path}, line {number}", max_bytes)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                yield number, error
        if compression_of(path) and file.size == 0:
            raise EOFError("it is empty")  # zlib and pyarrow take no bytes at all for a complete file
    except (EOFError, OSError, MemoryError, lzma.LZMAError, zlib.error, pa.ArrowInvalid) as error:
        raise unreadable(path, error) from error


def _decompressed(path: str, file: HashedFile) -> BinaryIO:
    stored = io.BufferedReader(file, BUFFER_BYTES)
    match compression_of(path):
        case ".gz":
            stream: Any = gzip.GzipFile(fileobj=stored)
        case ".xz":
            stream = lzma.LZMAFile(stored)  # noqa: SIM115 (closed with the file below it)
        case ".zst":
            stream = pa.CompressedInputStream(pa.PythonFile(stored, "r"), "zstd")
        case _:
            return stored
    return cast(BinaryIO, io.BufferedReader(stream, BUFFER_BYTES))


def too_long(where: str, limit: int) -> PotstillError:
    """The error to raise for a line or a document that is longer than is read."""
    return PotstillError(
        f"{where} is longer than the {limit / 2**20:.0f} MiB that are read as one: cut the text into shorter "
        "documents, one a line."
    )


def unreadable(path: str, error: BaseException) -> PotstillError:
    """The error to raise for a file of which reading failed, from what the reading library raised."""
    reason = first_line(error)
    if isinstance(error, MemoryError):
        return PotstillError(
            f"{path} cannot be read for want of memory: free some, or store the file in smaller parts."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return PotstillError(f"{path} cannot be read ({os.strerror(error.errno)}): {advice(error)}.")
    if "too much memory" in reason:  # zstd's words for a window that is larger than it was told to allow
        return PotstillError(
            f"{path} was compressed with a window of more than {ZSTD_WINDOW_BYTES // 2**20} MiB (zstd --long), which "
            f"is not read here: write it again with zstd -dc --long=31 {shlex.quote(path)} | zstd -o NEW.zst."
        )
    if "ictionary mismatch" in reason:
        return PotstillError(
            f"{path} was compressed with a dictionary, which is not at hand here: decompress it with zstd -d -D."
        )
    # A library that decodes reports damage as an OSError without a number, or as a type of its own.
    return PotstillError(f"{path} is truncated or damaged ({reason}): fetch or write it again.")
