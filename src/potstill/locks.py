"""A lock that lets only one process at a time use an output folder. It ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from potstill.errors import PotstillError, first_line

try:
    import fcntl
except ImportError:  # Windows has no such locks, so folders are not protected there
    fcntl = None  # type: ignore[assignment]

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_HELD: dict[Path, int] = {}
"""Folder → how often this process holds its lock. The system counts a process's own locks as one."""


@contextmanager
def locked(folder: str | Path, option: str = "--output_dir") -> Iterator[None]:
    """Keep every other process out of an output folder while the body runs.

    The system releases the lock when the process ends for any reason, so a lock never outlives a killed run. The lock
    file lies next to the folder, because some verbs replace the folder atomically. It lies inside the folder if the
    parent cannot be written to. The first process of a launch holds the lock for all of them.

    Args:
        folder: the folder, which may be missing. Its parent is made if needed.
        option: what names the folder, for messages.

    Raises:
        PotstillError: another process holds the lock, or nothing can be written there.
    """
    folder = Path(folder).expanduser().resolve()
    if fcntl is None or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    if _HELD.get(folder, 0):  # a verb that calls another one, or a trainer inside a verb
        _HELD[folder] += 1
        try:
            yield
        finally:
            _HELD[folder] -= 1
        return
    made = _make_folders(folder.parent)
    try:
        path, descriptor = _open(folder, option)
        _HELD[folder] = 1
        try:
            yield
        finally:
            _HELD.pop(folder)
            with suppress(OSError):
                path.unlink()  # before the lock is released, so that no other process's lock is removed
            os.close(descriptor)
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # the folder is in use by now
                parent.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents. Return the ones that were missing, the outermost first."""
    missing: list[Path] = []
    while not folder.exists():
        missing.insert(0, folder)
        folder = folder.parent
    try:
        for path in missing:
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise PotstillError(
            f"The folder {missing[0]} cannot be made: {error.strerror or first_line(error)}."
        ) from error
    return missing


def _open(folder: Path, option: str) -> tuple[Path, int]:
    """Lock the lock file, and return its path and its descriptor."""
    places = [folder.parent / f".{folder.name}.lock"]
    if folder.is_dir():
        places.append(folder / ".lock")
    for path in places:
        try:
            return path, _acquired(path, folder, option)
        except OSError as error:
            refused = error
            if error.errno not in _NOT_ALLOWED:
                break
    raise PotstillError(
        f"The output folder {folder} cannot be written to: {refused.strerror or first_line(refused)}; "
        f"name another one with {option}."
    ) from refused


def _acquired(path: Path, folder: Path, option: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise PotstillError(
                    f"{folder} is in use by another process ({holder or 'of an unknown number'}): wait until that "
                    f"process ends, or name another {option}."
                ) from error
            print(f"{folder} cannot be locked on this file system ({error.strerror}).", file=sys.stderr, flush=True)
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            # The process that held the lock before may have removed the file after it was opened here.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return descriptor
        os.close(descriptor)
