"""Read the decoded lines of a text file, compressed or not, and hash its bytes."""

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
from potstill.small_files import check_regular

BUFFER_BYTES = 2**18

MAX_DOCUMENT_BYTES = 2**25
"""The size of the longest document that is read, 32 MiB. `tokenizers` needs up to 90 times as much memory for it."""

MAX_LINE_BYTES = 2**29
"""The default limit for one line, 512 MiB. A JSON file of a whole data set may have no line break at all."""

MOST_UNPACKED, PLAUSIBLE_RATIO = 2**28, 256
"""How much a compressed file may unpack to: 256 times its size, and 256 MiB in any case. Text becomes 3 to 20 times as
large. A file made to fill memory or disk becomes a thousand times as large, or a million."""

BYTES_PER_LINE = 64
"""What each line or row counts in this beside its text: the memory of a row does not depend on its text alone."""

ZSTD_WINDOW_BYTES = 2**27
"""The largest zstd window that pyarrow accepts for decompression."""


class HashedFile(io.RawIOBase):
    """A file that hashes and counts its bytes while they are read, so that a corpus is read from disk only once.

    Args:
        path: path of the file.

    Attributes:
        size: bytes read.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close())
        self._digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        """Return True."""
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
        """Return the SHA-256 of the bytes read, in hexadecimal."""
        return self._digest.hexdigest()


def open_hashed(path: str) -> HashedFile:
    """Open a file that is hashed while it is read.

    Raises:
        PotstillError: the file cannot be opened.
    """
    try:
        check_regular(path)
        return HashedFile(path)
    except OSError as error:
        raise unreadable(path, error) from error


def decoded_lines(
    path: str, file: HashedFile, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    """Yield the number (from 1) and the text of each line without its end, or the error for a line that is not UTF-8.

    A byte-order mark is removed. A line may end in LF or CRLF. After the last line the whole file has been read.

    Args:
        path: path of the file; its ending says how the file is compressed.
        file: the opened file.
        max_bytes: the longest line that is read. It bounds the memory, because a small file may unpack to one endless
            line.

    Raises:
        PotstillError: the file cannot be read, is truncated or damaged, has a longer line, or unpacks to much more than
            text can be.
    """
    number = unpacked = 0
    packed = compression_of(path) is not None
    try:
        stream = _decompressed(path, file)
        while line := stream.readline(max_bytes + 1):
            number += 1
            if len(line) > max_bytes:
                raise too_long(f"{path}, line {number}", max_bytes)
            if packed:
                unpacked += len(line) + BYTES_PER_LINE
                check_unpacked(path, unpacked, file.size)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                yield number, error
        if packed and file.size == 0:
            raise EOFError("it is empty")  # zlib and pyarrow accept an empty file as complete
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


def check_unpacked(path: str, unpacked: int, stored: int) -> None:
    """Make sure that a file does not become implausibly large as it is unpacked.

    Args:
        path: path of the file.
        unpacked: bytes that came out of it so far, and `BYTES_PER_LINE` for each line or row.
        stored: bytes of the file that were read for it.

    Raises:
        PotstillError: they are more than text can be.
    """
    if unpacked > max(MOST_UNPACKED, PLAUSIBLE_RATIO * stored):
        raise PotstillError(
            f"{path} unpacks to more than {PLAUSIBLE_RATIO} times its size, which no text does, so it may be made to "
            "fill your disk: unpack it yourself if you trust it."
        )


def too_long(where: str, limit: int) -> PotstillError:
    """Return the error to raise for a line or a document that is longer than the limit."""
    return PotstillError(
        f"{where} is longer than the limit of {limit / 2**20:.0f} MiB: split the text into shorter documents, one per "
        "line."
    )


def unreadable(path: str, error: BaseException) -> PotstillError:
    """Return the error to raise for a file that cannot be read, made from the error of the reading library."""
    reason = first_line(error)
    if isinstance(error, MemoryError):
        return PotstillError(
            f"{path} cannot be read because memory is too small: free some, or store the file in smaller parts."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return PotstillError(f"{path} cannot be read ({os.strerror(error.errno)}): {advice(error)}.")
    if "too much memory" in reason:  # zstd's message for a window above the limit
        return PotstillError(
            f"{path} was compressed with a window of more than {ZSTD_WINDOW_BYTES // 2**20} MiB (zstd --long), which "
            f"is not supported: write it again with zstd -dc --long=31 {shlex.quote(path)} | zstd -o NEW.zst."
        )
    if "ictionary mismatch" in reason:
        return PotstillError(
            f"{path} was compressed with a dictionary, which is not available here: decompress it with zstd -d -D."
        )
    # Decoding libraries report damage as an OSError without a number, or as a type of their own.
    return PotstillError(f"{path} is truncated or damaged ({reason}): fetch or write it again.")
