"""Was it the disk? Libraries tell a full one in many ways, or not at all, and then the model is blamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import PotstillError

FULL = (errno.ENOSPC, errno.EDQUOT)
DISK = (*FULL, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
"""Numbers of errors that a disk is to blame for."""

PROBE = 1 << 20
"""Bytes to write where nobody tells what was wrong."""


@contextmanager
def disk_errors_told(folder: Path, output_dir: Path) -> Iterator[None]:
    """Tell the body's failure as one of the disk, if it was one, whatever the library in between made of it.

    Args:
        folder: being written to.
        output_dir: as the user knows it.

    Raises:
        PotstillError: the disk is full, or cannot be written for another reason.
    """
    try:
        yield
    except Exception as error:
        trouble = _in_chain(error) or _by_trying(folder)
        if trouble is None:
            raise
        raise cannot_write(output_dir, trouble) from error


def cannot_write(output_dir: Path, error: OSError) -> PotstillError:
    """Return the sentence for an output folder that cannot be written."""
    advice = "free some disk space, or name another folder" if error.errno in FULL else "name another folder"
    return PotstillError(f"--output_dir {output_dir} cannot be written ({error.strerror or error}): {advice}.")


def _in_chain(error: BaseException) -> OSError | None:
    """Return the error of a disk that an exception was made of, or that its message quotes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK:
            return seen
        for number in DISK:
            if os.strerror(number) in str(seen):  # libraries in C++ and Rust keep the words alone
                return OSError(number, os.strerror(number))
        seen = seen.__cause__ or seen.__context__
    return None


def _by_trying(folder: Path) -> OSError | None:
    """Return why nothing more can be written to a folder; None if it can."""
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
