"""Write files and folders atomically: after an interruption there is the old state or the new one, never a part.

A new file or folder is first written as a hidden sibling, `.{name}.partial`. The replacement of a folder takes two
renamings: between them the old folder is called `.{name}.replaced`. What is new is on the disk before it gets its name,
and the name is on the disk when the function returns: a power failure cannot leave an empty file under a name.
"""

from __future__ import annotations

import errno
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
    """Check the folder that a verb is to write to, and return it. Undo an earlier replacement that a kill interrupted.

    Raises:
        PotstillError: there is no name, the name is that of a file, the folder cannot be written to, or it is not
            empty and `overwrite` is false.
    """
    if not folder:
        raise PotstillError("--output_dir is missing: name the folder to write to.")
    path = Path(folder).expanduser()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # libraries written in Rust take no other paths
        raise PotstillError(
            f"--output_dir {path} is not UTF-8 text in the locale of this program: set PYTHONUTF8=1, or name a folder "
            "in ASCII letters."
        ) from error
    if path.exists() and not path.is_dir():
        raise PotstillError(f"--output_dir {path} is a file: name a folder.")
    check_writable(path)
    recover_folder(path)
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise PotstillError(
            f"--output_dir {path} is not empty: name another folder, or give --overwrite_output_dir to replace it."
        )
    return path


def check_writable(folder: Path) -> None:
    """Make sure, before any work is done, that files can be made in a folder, or in its future place if it is missing.

    Raises:
        PotstillError: they cannot be made.
    """
    _check_place(folder, folder, f"{folder} cannot be written to")


def check_output_file(file: str | Path, option: str, in_folder: bool = False) -> Path:
    """Make sure, before any work is done, that `write_text` can write a file, and return the file's path.

    Args:
        file: the file to write or replace.
        option: the option that names it, for messages.
        in_folder: whether its folder must exist already.

    Raises:
        PotstillError: the path is a folder, or the file cannot be written.
    """
    path = Path(file).expanduser()
    wrong = f"{option} {path} cannot be written"
    if os.path.isdir(path):
        raise PotstillError(f"{wrong}, because it is a folder: name a file.")
    if in_folder and not os.path.isdir(path.absolute().parent):
        raise PotstillError(f"{wrong}: name a file in a folder that exists.")
    if not _is_special(path):
        _check_place(path.absolute().parent, path.absolute(), wrong)
    return path


def _check_place(folder: Path, path: Path, wrong: str) -> None:
    """Make sure that a partial file can be made in a folder, or in its future place, and later be renamed to a path."""
    place = folder.absolute()
    try:
        while not _is_there(place):
            place = place.parent
        _is_there(_sibling(path, f"{'0' * 20}.partial"))  # the longest name that will be used
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0" * 4096)  # a full disk may have room for an empty file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PotstillError(f"{wrong}: {reason} ({place}); name another place.") from error


def check_replaceable(folder: Path, mark: str, what: str) -> None:
    """Make sure, before any work is done, that a folder can and may be replaced atomically.

    Args:
        folder: the folder to replace; it may be missing or empty.
        mark: the name of a file that only folders of this kind have.
        what: the kind of folder, for the message.

    Raises:
        PotstillError: the folder is a mount point, or it holds something of another kind.
    """
    if os.path.ismount(folder):
        raise PotstillError(
            f"--output_dir {folder} is a mount point, which cannot be replaced in one step: name a folder inside it."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise PotstillError(
            f"--output_dir {folder} holds something other than {what}, so it is not replaced: name another folder."
        )


@contextmanager
def claimed_folder(
    folder: str | Path | None, overwrite: bool, mark: str, what: str, break_lock: bool = False
) -> Iterator[Path]:
    """Check and lock the folder that a verb writes atomically. No other process may use it until the body ends.

    Args:
        folder: see `check_output_dir`.
        overwrite: whether the contents of the folder may be replaced.
        mark: see `check_replaceable`.
        what: see `check_replaceable`.
        break_lock: see `locked`.

    Raises:
        PotstillError: one of these two functions raised it, or another process uses the folder.
    """
    if not folder:
        raise PotstillError("--output_dir is missing: name the folder to write to.")
    with locked(folder, break_lock=break_lock):
        path = check_output_dir(folder, overwrite)
        check_replaceable(path, mark, what)
        yield path


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Make a new folder to write to, and rename it to `folder` when the body ends without an exception.

    Until then the new folder is a hidden sibling. It is removed if the body fails, or is ended by Ctrl-C or SIGTERM.
    The remains of a killed process are removed first. An existing `folder` is replaced only when the new one is
    complete.
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
            flush(partial)
            replace_folder(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Move a complete and flushed folder to its place. The old folder is removed only after the new one is there.

    If the process is killed in between, `recover_folder` repairs the state. The next reader or writer of `folder` has
    to call it.
    """
    folder = folder.resolve()
    recover_folder(folder)
    try:
        if folder.exists():
            folder.rename(_sibling(folder, "replaced"))
        new.rename(folder)
        flush_names(folder.parent)  # before the old folder is removed
    finally:
        recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Finish an interrupted replacement: remove the old folder if the new one is there, else move the old one back."""
    folder = folder.resolve()
    replaced = _sibling(folder, "replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        with suppress(FileNotFoundError):  # another process of the same run was faster
            replaced.rename(folder)


def recover_folders(parent: Path, pattern: str) -> None:
    """Call `recover_folder` for each replaced folder in `parent` whose original name matches a pattern."""
    for replaced in parent.glob(_sibling(Path(pattern), "replaced").name):
        recover_folder(parent / replaced.stem.removeprefix("."))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, and make its folder if needed.

    Raises:
        PotstillError: the file cannot be written; an existing file is unchanged.
    """
    partial = _sibling(path, f"{os.getpid()}.partial")  # one for each process, because several may write the file
    try:
        if _is_special(path):  # a file must never replace /dev/stdout
            path.write_text(text, encoding="utf-8")
            return
        for abandoned in path.parent.glob(_sibling(path, "*.partial").name):
            number = abandoned.name.split(".")[-2]
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                abandoned.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            flush(partial)
            os.replace(partial, path)
            flush_names(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PotstillError(f"{path} cannot be written: {error.strerror or first_line(error)}.") from error


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all files and folders in it, is on the disk.

    Raises:
        OSError: it cannot be written; some file systems report a full disk only now.
    """
    if not path.is_dir():
        _fsync(path)
        return
    for parent, _, files in os.walk(path):
        for file in (Path(parent, name) for name in files):
            if file.is_file() and not file.is_symlink():
                _fsync(file)
        flush_names(Path(parent))


def flush_names(folder: Path) -> None:
    """Wait until the names in a folder, and so the renamings in it, are on the disk."""
    with suppress(PermissionError):  # Windows does not open folders
        try:
            _fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system does so by itself
                raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    """Return whether a path exists. Unlike `Path.exists`, raise an `OSError` if that cannot be known."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return False
    return True


def _is_special(path: Path) -> bool:
    """Return whether a path is neither a file nor a folder, but a terminal or a pipe, for example."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _sibling(folder: Path, kind: str) -> Path:
    return folder.parent / f".{folder.name}.{kind}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        if callable(before):  # the handler of before prints a message, and may end the program itself
            before(number, frame)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
