"""A lock that lets only one process at a time use an output folder. It ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from potstill.errors import PotstillError, first_line

try:
    import fcntl
except ImportError:  # Windows has no such locks, so folders are not protected there
    fcntl = None  # type: ignore[assignment]

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_HOLDER = re.compile(r"process (?P<number>\d+) on (?P<machine>\S+)(?: since (?P<since>[\d.]+))?")


@dataclass
class _Lock:
    """A lock of this process: its file, how often it is held, and whether the system keeps it."""

    path: Path
    descriptor: int
    times: int = 1
    by_system: bool = True


_HELD: dict[Path, _Lock] = {}
"""Folder → the lock of this process. The system counts a process's own locks as one."""


@contextmanager
def locked(folder: str | Path, option: str = "--output_dir", break_lock: bool = False) -> Iterator[None]:
    """Keep every other process out of an output folder while the body runs.

    The system releases the lock when the process ends for any reason, so a lock never outlives a killed run. The lock
    file lies next to the folder, because some verbs replace the folder atomically. It lies inside the folder if the
    parent cannot be written to. The first process of a launch holds the lock for all of them.

    On a file system without locks, the file alone is the lock. If its process was killed on this machine, the next one
    takes the file over.

    Args:
        folder: the folder, which may be missing. Its parent is made if needed.
        option: what names the folder, for messages.
        break_lock: take over a lock of another machine, which may be dead. A process of this machine keeps its lock.

    Raises:
        PotstillError: another process holds the lock, or nothing can be written there.
    """
    try:
        folder = Path(folder).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, or the home of a user that does not exist
        raise PotstillError(
            f"{option} {folder} is no path that can be used ({first_line(error)}): name another."
        ) from error
    if fcntl is None or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    if folder in _HELD:  # a verb that calls another one, or a trainer inside a verb
        _HELD[folder].times += 1
        try:
            yield
        finally:
            _HELD[folder].times -= 1
        return
    made = _make_folders(folder.parent)
    try:
        lock = _open(folder, option, break_lock)
        _HELD[folder] = lock
        try:
            yield
        finally:
            _HELD.pop(folder)
            if _is_own(lock):
                with suppress(OSError):
                    lock.path.unlink()  # before the lock is released, so that no other process's lock is removed
            os.close(lock.descriptor)
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


def check_lock(folder: str | Path) -> None:
    """Make sure that no other process has broken this process's lock of a folder.

    Raises:
        PotstillError: another process has, so it writes there now.
    """
    lock = _HELD.get(Path(folder).expanduser().resolve())
    if lock is not None and lock.path.exists() and not _is_own(lock):
        raise PotstillError(
            f"{folder} was taken over by another process ({_read(lock.path) or 'of an unknown number'}) with "
            "--break_lock, so this one ends."
        )


def _is_own(lock: _Lock) -> bool:
    """Return whether the file of a lock is still the one that this process made."""
    try:
        return os.fstat(lock.descriptor).st_ino == lock.path.stat().st_ino
    except OSError:
        return False


def _open(folder: Path, option: str, break_lock: bool) -> _Lock:
    """Lock the lock file."""
    places = [folder.parent / f".{folder.name}.lock"]
    if folder.is_dir():
        places.append(folder / ".lock")
    for path in places:
        try:
            return _acquired(path, folder, option, break_lock)
        except OSError as error:
            refused = error
            if error.errno not in _NOT_ALLOWED:
                break
    raise PotstillError(
        f"The output folder {folder} cannot be written to: {refused.strerror or first_line(refused)}; "
        f"name another one with {option}."
    ) from refused


def _acquired(path: Path, folder: Path, option: str, break_lock: bool) -> _Lock:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            holder, by_system = "", True
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                by_system = error.errno in (errno.EAGAIN, errno.EACCES)
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                # The file of a process that was killed stays. Without locks, only its content says that it is stale.
                if by_system or (holder and _may_live(holder)):
                    if not break_lock or _lives_here(holder):
                        raise _in_use(folder, holder, option) from error
                    path.unlink(missing_ok=True)
                    continue
            with suppress(FileNotFoundError):
                # The process that held the lock before may have removed the file after it was opened here.
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{_this_process()}\n".encode(), 0)
                    lock, descriptor = _Lock(path, descriptor, by_system=by_system), -1
                    return lock
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _in_use(folder: Path, holder: str, option: str) -> PotstillError:
    message = f"{folder} is in use by another process ({holder or 'of an unknown number'}): wait until that process "
    message += f"ends, or name another {option}"
    if not _lives_here(holder):
        message += (
            "; if it runs no more, as after that machine failed and left its lock on a network drive, add --break_lock"
        )
    return PotstillError(f"{message}.")


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {psutil.Process().create_time():.2f}"


def _lives_here(holder: str) -> bool:
    """Return whether a holder is a running process of this machine."""
    found = _HOLDER.fullmatch(holder)
    if found is None or found["machine"] != socket.gethostname():
        return False
    try:
        since = psutil.Process(int(found["number"])).create_time()
    except (psutil.Error, OSError, OverflowError):
        return False
    return found["since"] is None or abs(since - float(found["since"])) < 1  # the number may be another process's now


def _may_live(holder: str) -> bool:
    """Return whether a holder may still run: it does, or it is on another machine."""
    found = _HOLDER.fullmatch(holder)
    return found is None or found["machine"] != socket.gethostname() or _lives_here(holder)


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
