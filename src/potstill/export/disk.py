"""Finds out whether the disk caused a failure. Libraries report a full disk in many ways, or blame the model."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import PotstillError

FULL = (errno.ENOSPC, errno.EDQUOT)
DISK = (*FULL, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
"""Error numbers of failures that the disk causes."""

PROBE = 1 << 20
"""Bytes to write as a test when a library does not report the cause."""


@contextmanager
def disk_errors_reported(folder: Path, output_dir: Path) -> Iterator[None]:
    """Replace an exception of the body by an error of the disk, if the disk was its cause.

    Args:
        folder: the body writes to it.
        output_dir: the same folder as the user named it, for the message.

    Raises:
        PotstillError: the disk is full, or the folder cannot be written for another reason.
    """
    try:
        yield
    except Exception as error:
        disk_error = _disk_error_in(error) or _try_to_write(folder)
        if disk_error is None:
            raise
        raise cannot_write(output_dir, disk_error) from error


def cannot_write(output_dir: Path, error: OSError) -> PotstillError:
    """Return the error for an output folder that cannot be written."""
    advice = "free some disk space, or name another folder" if error.errno in FULL else "name another folder"
    return PotstillError(f"--output_dir {output_dir} cannot be written ({error.strerror or error}): {advice}.")


def _disk_error_in(error: BaseException) -> OSError | None:
    """Return the disk error that caused an exception or that its message quotes; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK:
            return seen
        for number in DISK:
            if os.strerror(number) in str(seen):  # libraries in C++ and Rust keep only the text
                return OSError(number, os.strerror(number))
        seen = seen.__cause__ or seen.__context__
    return None


def _try_to_write(folder: Path) -> OSError | None:
    """Return the disk error of a test file in a folder; None if it can be written."""
    probe = folder / ".probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in DISK else None
    finally:
        probe.unlink(missing_ok=True)
    return None
