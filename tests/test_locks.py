"""One process at a time works on an output folder."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from potstill import locks
from potstill.errors import PotstillError
from potstill.locks import check_lock, locked

HOLDER = """
import errno, fcntl, socket, sys
from potstill.errors import PotstillError
from potstill.locks import check_lock, locked

folder, machine, locks = sys.argv[1:]
if machine:
    socket.gethostname = lambda: machine
if not locks:
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")
    fcntl.lockf = no_locks
with locked(folder):
    print("locked", flush=True)
    sys.stdin.read()
    try:
        check_lock(folder)
    except PotstillError as error:
        print(error)
"""


@contextmanager
def holder(folder: Path, machine: str = "", locks: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock, perhaps on a machine of another name, or on a file system without locks."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(folder), machine, "yes" if locks else ""]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


@pytest.mark.parametrize("exists", [False, True])
def test_the_second_process_is_refused_and_told_by_whom(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "student"
    if exists:
        folder.mkdir()
    with holder(folder) as other:
        in_use = rf"student is in use by another process \(process {other.pid} on "
        with pytest.raises(PotstillError, match=in_use), locked(folder):
            pass
        with locked(tmp_path / "another"):
            pass
    with locked(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == (["student"] if exists else [])


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with holder(tmp_path / "student") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / ".student.lock").exists()
        with locked(tmp_path / "student"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_may_lock_again_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    with locked(folder):
        with locked(folder):
            pass
        assert (tmp_path / ".student.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_is_made_and_removed_if_nothing_came_of_it(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "student"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b" / "student"):
        (tmp_path / "a" / "b" / "student").mkdir()
    assert (tmp_path / "a" / "b" / "student").is_dir()


def test_a_folder_whose_parent_is_closed_is_locked_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened = tmp_path / "student", os.open
    folder.mkdir()

    def closed(path: Path, *args: int) -> int:
        if Path(path).parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)

    monkeypatch.setattr(locks.os, "open", closed)
    with locked(folder):
        assert (folder / ".lock").exists()
    with pytest.raises(PotstillError, match="cannot be written to: Permission denied"), locked(tmp_path / "new"):
        pass


def test_other_processes_of_a_launch_do_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path / "student"):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path / "student"):
            pass


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system such as Lustre without its option `flock`."""

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", no_locks)


@pytest.mark.parametrize("system", [True, False], ids=["locks", "no locks"])
def test_a_lock_of_another_machine_is_told_and_broken_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool
) -> None:
    """A failed machine can leave its lock on a network drive. Here its process lives, which nobody can tell."""
    if not system:
        without_locks(monkeypatch)
    folder = tmp_path / "student"
    with holder(folder, "lost-machine", system) as other:
        told = rf"in use by another process \(process {other.pid} on lost-machine since .*machine.*add --break_lock\."
        with pytest.raises(PotstillError, match=told), locked(folder):
            pass
        with locked(folder, break_lock=True):
            # Read by another process: the system releases a lock when its process closes the file once more.
            text = subprocess.check_output(["cat", tmp_path / ".student.lock"], text=True)
            assert text.startswith(f"process {os.getpid()} on ")
            check_lock(folder)
            with pytest.raises(PotstillError, match="in use"), holder_in_vain(folder, system):
                pass
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.close()
            taken = other.stdout.read()
            assert f"was taken over by another process ({text.strip()})" in taken
            assert (
                subprocess.check_output(["cat", tmp_path / ".student.lock"], text=True) == text
            )  # it removed its own file, not the new one
    assert list(tmp_path.iterdir()) == []


@contextmanager
def holder_in_vain(folder: Path, system: bool) -> Iterator[None]:
    """Let another process try to lock, and raise what it prints."""
    command = [sys.executable, "-c", HOLDER, str(folder), "", "yes" if system else ""]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise PotstillError(done.stderr.splitlines()[-1])
    yield


@pytest.mark.parametrize("system", [True, False], ids=["locks", "no locks"])
def test_the_lock_of_a_running_process_of_this_machine_is_never_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool
) -> None:
    if not system:
        without_locks(monkeypatch)
    with holder(tmp_path / "student", locks=system):
        for broken in (False, True):
            with (
                pytest.raises(PotstillError, match=r"another --output_dir\.$"),
                locked(tmp_path / "student", break_lock=broken),
            ):
                pass


def test_without_locks_the_file_of_a_killed_process_of_this_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with holder(tmp_path / "student", locks=False) as other:
        other.kill()
        other.wait()
        file = tmp_path / ".student.lock"
        assert str(other.pid) in file.read_text()
        with locked(tmp_path / "student"):
            assert str(os.getpid()) in file.read_text()
        # The number of a dead process may be that of another one now.
        file.write_text(f"process {os.getppid()} on {socket.gethostname()} since 1.00\n")
        with locked(tmp_path / "student"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_leads_nowhere_is_a_sentence(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    if sys.version_info < (3, 13):  # later versions find such a path, and the folder is then refused
        with (
            pytest.raises(PotstillError, match=r"--output_dir .*loop is no path that can be used \(Symlink loop"),
            locked(loop),
        ):
            pass
    with pytest.raises(PotstillError, match="is no path that can be used"), locked("~nobody-of-this-name/out"):
        pass
