"""One process at a time works on an output folder."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from potstill import locks
from potstill.errors import PotstillError
from potstill.locks import locked

HOLDER = """
import sys
from potstill.locks import locked

with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=pipe, stdout=pipe, text=True)
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
