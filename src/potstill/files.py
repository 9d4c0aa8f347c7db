"""Writing files and folders so that an interruption leaves the old state or the new one, never half of either.

What is being written is its hidden sibling `.{name}.partial`; a folder that is being replaced is `.{name}.replaced` for
the moment between the two renamings that put the new one in its place.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from potstill.errors import PotstillError, first_line
from potstill.locks import locked
from potstill.permissions import share


def check_output_dir(folder: str | Path | None, overwrite: bool) -> Path:
    """Return the folder a verb may write to, having undone a replacement of it that a kill cut short.

    Raises:
        PotstillError: no folder named, a file of that name, a folder that cannot be written to, or a folder with
            something in it and no leave to overwrite.
    """
    if not folder:
        raise PotstillError("--output_dir is missing: name the folder to write to.")
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise PotstillError(f"--output_dir {path} is a file: name a folder.")
    check_writable(path)
    recover_folder(path)
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise PotstillError(
            f"--output_dir {path} is not empty: name another folder, or pass --overwrite_output_dir to replace it."
        )
    return path


def check_writable(folder: Path) -> None:
    """Make sure, before any work is done, that files can be made in a folder, or where it is going to be made.

    Raises:
        PotstillError: they cannot.
    """
    _check_place(folder, folder, f"{folder} cannot be written to")


def check_output_file(file: str | Path, option: str, in_folder: bool = False) -> Path:
    """Return a file that `write_text` is to write, having made sure before any work is done that it can.

    Args:
        file: to be written or replaced.
        option: that names it, for messages.
        in_folder: whether its folder has to be there already.

    Raises:
        PotstillError: it is a folder, or cannot be written.
    """
    path = Path(file).expanduser()
    wrong = f"{option} {path} cannot be written"
    if os.path.isdir(path):
        raise PotstillError(f"{wrong}: Is a directory; name a file.")
    if in_folder and not os.path.isdir(path.absolute().parent):
        raise PotstillError(f"{wrong}: name a file in a folder that exists.")
    if not _is_special(path):
        _check_place(path.absolute().parent, path.absolute(), wrong)
    return path


def _check_place(folder: Path, path: Path, wrong: str) -> None:
    """Make sure that files can be made in a folder, or where it is going to be made, for one to take a path's name."""
    place = folder.absolute()
    try:
        while not _is_there(place):
            place = place.parent
        _is_there(_sibling(path, f"{'0' * 20}.partial"))  # the longest name that is going to be used
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0" * 4096)  # on a full disk there is room for the file, and for nothing in it
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PotstillError(f"{wrong}: {reason} ({place}); name another place.") from error


def check_replaceable(folder: Path, mark: str, what: str) -> None:
    """Make sure, before any work is done, that a folder may be replaced as a whole, and that it can be.

    Args:
        folder: to be replaced; it may be missing or empty.
        mark: name of a file that only folders of this kind have.
        what: the kind, for the message.

    Raises:
        PotstillError: it is a mount point, or holds something else.
    """
    if os.path.ismount(folder):
        raise PotstillError(
            f"--output_dir {folder} is a mount point, which cannot be replaced in one step: name a folder inside it."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise PotstillError(
            f"--output_dir {folder} holds something other than {what}, which is not replaced: name another folder."
        )


@contextmanager
def claimed_folder(folder: str | Path | None, overwrite: bool, mark: str, what: str) -> Iterator[Path]:
    """Give the folder that a verb writes as a whole, which no other process may use until the body ends.

    Args:
        folder: as `check_output_dir` takes it.
        overwrite: whether what is in the folder may be replaced.
        mark: as `check_replaceable` takes it.
        what: likewise.

    Raises:
        PotstillError: as these two raise it, or another process uses the folder.
    """
    if not folder:
        raise PotstillError("--output_dir is missing: name the folder to write to.")
    with locked(folder):
        path = check_output_dir(folder, overwrite)
        check_replaceable(path, mark, what)
        yield path


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write to, which takes the name `folder` when the body ends without an exception.

    Until then it is a hidden sibling, which goes away when the body fails, is interrupted (Ctrl-C) or terminated
    (SIGTERM). What a killed process left there is removed first. What is in `folder` already is replaced only when the
    new one is complete.
    """
    folder = folder.resolve()
    partial = _sibling(folder, "partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        with _terminable():
            partial.mkdir(parents=True)
            yield partial
            share(partial)
            replace_folder(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Move a complete folder to its place; what stood there goes only once the new one stands there.

    A kill in between is mended by `recover_folder`, which whoever reads or writes `folder` next is to call.
    """
    folder = folder.resolve()
    recover_folder(folder)
    try:
        if folder.exists():
            folder.rename(_sibling(folder, "replaced"))
        new.rename(folder)
    finally:
        recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Put a folder back that was moved away while the one to replace it had not arrived, or remove it if it had."""
    folder = folder.resolve()
    replaced = _sibling(folder, "replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        with suppress(FileNotFoundError):  # another process of the same run was faster
            replaced.rename(folder)


def recover_folders(parent: Path, pattern: str) -> None:
    """Do `recover_folder` for all folders in `parent` whose name, by which they may be missing, matches a pattern."""
    for replaced in parent.glob(_sibling(Path(pattern), "replaced").name):
        recover_folder(parent / replaced.stem.removeprefix("."))


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole; its folder is made if need be.

    Raises:
        PotstillError: it cannot be written; what was there is there still.
    """
    partial = _sibling(path, f"{os.getpid()}.partial")  # of its own, for several processes may write the file
    try:
        if _is_special(path):  # /dev/stdout is written to, and never replaced by a file
            path.write_text(text, encoding="utf-8")
            return
        for abandoned in path.parent.glob(_sibling(path, "*.partial").name):
            number = abandoned.name.split(".")[-2]
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                abandoned.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PotstillError(f"{path} cannot be written: {error.strerror or first_line(error)}.") from error


def _is_there(path: Path) -> bool:
    """Say whether something is there; unlike `exists` of `pathlib`, with the reason where that cannot be known."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return False
    return True


def _is_special(path: Path) -> bool:
    """Say whether something is there that is neither file nor folder: a terminal, a pipe."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _sibling(folder: Path, kind: str) -> Path:
    return folder.parent / f".{folder.name}.{kind}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that what was begun is cleared away."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's affair
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        if callable(before):  # which says so, and may end the program itself
            before(number, frame)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
