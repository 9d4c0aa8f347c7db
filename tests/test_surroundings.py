"""A verb tells what it lacks in the process that runs it, and nothing is lost if nobody reads what it prints."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.cli import main
from potstill.surroundings import open_closed_streams

SOURCE = Path(__file__).resolve().parents[1] / "src"
SHORT = "import sys; from potstill.cli import main; sys.exit(main(sys.argv[1:]))"


def started(*words: object, before: Callable[[], None] | None = None, **environment: str) -> tuple[int, str]:
    """Return the exit status and the standard error of a verb in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", SHORT, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
        capture_output=True,
        text=True,
        preexec_fn=before,
    )
    return run.returncode, run.stderr


def prepare(folder: Path) -> list[object]:
    return ["prepare", "--text", folder / "nowhere.txt", "--output_dir", folder / "blocks", "--train_tokenizer"]


def test_a_current_folder_that_was_removed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    def leave() -> None:
        os.chdir(gone)
        gone.rmdir()

    status, told = started(*prepare(tmp_path), before=leave)
    assert status == 1
    assert told.startswith("potstill prepare: the current folder cannot be read (No such file or directory), perhaps")
    assert told.count("\n") == 1, told


def test_python_without_docstrings(tmp_path: Path) -> None:
    status, told = started(*prepare(tmp_path), PYTHONOPTIMIZE="2")
    assert status == 1
    assert told == (
        "potstill prepare: Python runs without docstrings, which transformers needs to load a model: unset "
        "PYTHONOPTIMIZE, or start Python without -OO.\n"
    )


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the open files are listed on Linux alone")
def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """Otherwise a library that prints would write into the file."""
    code = (
        "import os, sys; from potstill.surroundings import open_closed_streams; open_closed_streams();"
        f"file = open({str(tmp_path / 'model')!r}, 'w'); os.write(1, b'x'); os.write(2, b'x'); sys.stderr.write('x');"
        "print(file.fileno(), sys.stdin.read(), file=file)"
    )
    closed = [sys.executable, "-c", code]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *closed]
    assert subprocess.run(shell, env=os.environ | {"PYTHONPATH": str(SOURCE)}).returncode == 0
    number, *rest = (tmp_path / "model").read_text().split()
    assert int(number) > 2
    assert rest == []


def test_open_streams_stay(capfd: pytest.CaptureFixture[str]) -> None:
    before = [os.fstat(number) for number in range(3)], sys.stdin, sys.stdout, sys.stderr
    open_closed_streams()
    assert ([os.fstat(number) for number in range(3)], sys.stdin, sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_work_goes_on_if_its_lines_cannot_be_printed(number: int, tmp_path: Path) -> None:
    """The reader has ended, the disk with the log is full, or the terminal is closed."""
    code = (
        "import os, sys; from potstill.live_line import say\n"
        "class Stream:\n"
        "    def write(self, text): raise OSError(int(sys.argv[1]), 'no')\n"
        "    def flush(self): pass\n"
        "    def fileno(self): return 2\n"
        "sys.stderr = Stream()\n"
        "say('a'); print('done')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(number)], env=os.environ | {"PYTHONPATH": str(SOURCE)}, capture_output=True
    )
    assert run.stdout == b"done\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_the_exit_status_is_right_although_the_message_cannot_be_printed(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", SHORT, "prepare", "--no_such_option"],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stderr=full,
        )
    assert run.returncode == 2


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("potstill.cli.check_surroundings", fail)
    assert main(["prepare", "--text", "a.txt", "--output_dir", "b"]) == 1
    assert capsys.readouterr().err.startswith("potstill prepare: there is not enough memory: close other programs")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_work_goes_on_if_its_terminal_is_closed(tmp_path: Path) -> None:
    """As after `potstill ... & disown` in a window that is then closed."""
    code = (
        "import signal, sys; from pathlib import Path; from potstill.live_line import LiveLine, say\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with LiveLine() as line:\n"
        "    assert line.live\n"
        "    line.update(0.1, ['begun'])\n"
        "    sys.stdin.read()\n"  # until the terminal is closed
        "    line._changed = float('-inf')\n"
        "    line.update(0.2, ['going on'])\n"
        "    say('a line')\n"
        f"Path({str(tmp_path / 'done')!r}).touch()"
    )
    here, there = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "TERM": "xterm"},
        stdin=subprocess.PIPE,
        stdout=there,
        stderr=there,
        start_new_session=True,
    )
    os.close(there)
    shown = b""
    while b"begun" not in shown:
        shown += os.read(here, 4096)
    os.close(here)
    run.communicate()
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("option", ["--text", "--output_dir"])
def test_the_home_of_a_user_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    options = {"--text": str(tmp_path / "a.txt"), "--output_dir": str(tmp_path / "b")}
    options[option] = "~nobody-of-this-name/c"
    assert main(["prepare", "--train_tokenizer", *(word for pair in options.items() for word in pair)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("potstill prepare: ")
    assert told.count("\n") == 1, told
