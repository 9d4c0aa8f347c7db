"""A text file, compressed or not → its lines, decoded, and the hash of its bytes."""

import codecs
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from potstill.corpus.sources import compression_of
from potstill.errors import PotstillError

BUFFER_BYTES = 2**18


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


def decoded_lines(path: str, file: HashedFile) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    """Yield the number (from 1) and the text of each line, without its end; for a line that is not UTF-8, the error.

    A byte-order mark is taken off; a line may end in LF or CRLF. The whole file has been read when the last line has.

    Raises:
        PotstillError: the file cannot be read, or is truncated or damaged.
    """
    try:
        for number, line in enumerate(_decompressed(path, file), 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                yield number, error
        if compression_of(path) and file.size == 0:
            raise EOFError("it is empty")  # zlib and pyarrow take no bytes at all for a complete file
    except (EOFError, OSError, lzma.LZMAError, zlib.error, pa.ArrowInvalid) as error:
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


def unreadable(path: str, error: Exception) -> PotstillError:
    """The error to raise for a file of which reading failed, from what the reading library raised."""
    if isinstance(error, OSError) and error.errno is not None:
        return PotstillError(f"{path} cannot be read: {error.strerror}.")
    # A library that decodes reports damage as an OSError without a number, or as a type of its own.
    return PotstillError(f"{path} is truncated or damaged ({error}): fetch or write it again.")
