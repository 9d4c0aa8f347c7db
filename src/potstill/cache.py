"""The folder of potstill's cache, which holds only results that can be computed again."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from potstill.errors import PotstillError, first_line
from potstill.files import flush, flush_names

try:
    import fcntl
except ImportError:  # Windows has no such locks: there several processes may compute the same
    fcntl = None  # type: ignore[assignment]

DAY = 86_400


def cache_folder() -> Path:
    """Return the folder: `$POTSTILL_CACHE`, or `~/.cache/potstill`."""
    return Path(os.environ.get("POTSTILL_CACHE") or Path.home() / ".cache" / "potstill").expanduser()


@contextmanager
def cached(folder: Path, what: str) -> Iterator[Path]:
    """Make a folder of the cache, which is complete or not there.

    The body gets an empty folder to write to, which becomes `folder` when the body ends without an exception. Another
    process may write the same folder meanwhile: the first one to end wins.

    Args:
        folder: the folder in the cache.
        what: what is written, in words that begin a sentence in the plural.

    Raises:
        PotstillError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            yield partial
            flush(partial)
            os.replace(partial, folder)
            flush_names(folder.parent)
        except OSError:
            if not folder.is_dir():  # otherwise another process wrote it meanwhile
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise PotstillError(
            f"{what} cannot be saved in {folder.parent} ({first_line(error)}): free some space, or name another folder "
            "in POTSTILL_CACHE."
        ) from error


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Let only one process at a time compute a folder of the cache. The others wait until it is done, or has ended.

    Raises:
        PotstillError: the cache cannot be written.
    """
    if fcntl is None:
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w")  # noqa: SIM115  # closed below, after the body
        except OSError as error:
            raise PotstillError(
                f"The folder {folder.parent} cannot be written to ({first_line(error)}): give it space or permission, "
                "or name another folder in POTSTILL_CACHE."
            ) from error
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        # The process that held the lock before has removed the file that was opened here.
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is released, so that no other process's file is removed


def clear_abandoned(folder: Path) -> None:
    """Remove what processes left behind that were killed a day or, if they could be continued, a month ago."""
    for pattern, days in ((".partial-*", 1), (".parts-*", 30), (".*.lock", 30)):
        for left in folder.glob(pattern):
            with suppress(OSError):  # another process may be doing the same
                if time.time() - left.stat().st_mtime > days * DAY:
                    left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)
