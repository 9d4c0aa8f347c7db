"""Output that cannot be written is told in one sentence, before the work and not after it."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import potstill.bench.inference.bench
import potstill.bench.train
import potstill.demo.demo
import potstill.evaluation.compare
import potstill.evaluation.evaluate
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.files import check_output_file, check_writable, write_text

Refuse = Callable[[int], None]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Let no file be made below `tmp_path`: the rights of a folder do not bind root, whom tests may run as."""
    real = tempfile.TemporaryFile

    def refuse_with(number: int) -> None:
        def temporary_file(*args: Any, dir: Any, **options: Any) -> Any:
            if Path(dir).is_relative_to(tmp_path):
                raise OSError(number, os.strerror(number), str(dir))
            return real(*args, dir=dir, **options)

        monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)

    return refuse_with


def test_a_place_that_can_be_written_to_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "a" / "b", Path("a"), Path("a/b")):
        check_writable(folder)
    for file in (tmp_path / "file", "file", "a/b/file"):
        assert check_output_file(file, "--output") == Path(file)
    assert list(tmp_path.iterdir()) == []


def cannot(place: Callable[[Path], Any], tmp_path: Path) -> str:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PotstillError) as told:
        place(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_what_the_system_refuses(tmp_path: Path, refuse: Refuse, number: int) -> None:
    refuse(number)
    reason = f"{os.strerror(number)} ({tmp_path}); name another place"
    assert cannot(lambda place: check_writable(place), tmp_path).startswith(
        f"{tmp_path} cannot be written to: {reason}"
    )
    assert f"/a/b cannot be written to: {reason}" in cannot(lambda place: check_writable(place / "a" / "b"), tmp_path)
    said = cannot(lambda place: check_output_file(place / "a" / "file", "--output"), tmp_path)
    assert said.startswith(f"--output {tmp_path}/a/file cannot be written: {reason}")


def test_a_full_disk_that_takes_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # /dev/full takes nothing, as such a disk does not.
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: io.FileIO("/dev/full", "w"))
    assert "cannot be written to: No space left on device" in cannot(check_writable, tmp_path)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "too")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path, reason in (
        ("file/a/b", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("n" * 240, "File name too long"),  # with what is added to it while it is written
        ("nowhere/a", "No such file or directory"),
        ("round/a", "Too many levels of symbolic links"),
        ("a\0b", "embedded null"),
    ):
        assert reason in cannot(lambda place: check_writable(place / path), tmp_path)  # noqa: B023
        assert reason in cannot(lambda place: check_output_file(place / path, "--output"), tmp_path)  # noqa: B023
    check_output_file(tmp_path / "nowhere", "--output")  # which the file takes the place of
    assert cannot(lambda place: check_output_file(place, "--json"), tmp_path).endswith(
        ", because it is a folder: name a file."
    )
    assert "in a folder that exists" in cannot(lambda p: check_output_file(p / "a" / "b", "--json", True), tmp_path)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert check_output_file(pipe, "--output") == pipe
        write_text(pipe, "said\n")
        assert os.read(reader, 99) == b"said\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def work(*args: Any, **options: Any) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize(
    ("module", "begins", "argv"),
    [
        (
            potstill.evaluation.evaluate,
            "_read_models",
            ["evaluate", "--models", "a=b", "--suite", "imdb", "--use_cpu", "--output_dir", "OUT/new/results"],
        ),
        (potstill.evaluation.compare, "read_folders", ["compare", "results", "--output", "OUT/new/table.md"]),
        (potstill.bench.train, "_measure", ["bench", "train", "--use_cpu", "--json", "OUT/bench.json"]),
        (
            potstill.bench.inference.bench,
            "read_models",
            ["bench", "inference", "--models", "a=b", "--output", "OUT/bench.json"],
        ),
        (potstill.demo.demo, "prepare", ["demo", "--output_dir", "OUT/demo"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_verbs_tell_it_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refuse: Refuse,
    module: Any,
    begins: str,
    argv: list[str],
    number: int,
) -> None:
    monkeypatch.setattr(module, begins, work)
    out = tmp_path / "out"
    out.mkdir()
    arguments = [word.replace("OUT", str(out)) for word in argv]
    with pytest.raises(AssertionError, match="the work has begun"):
        main(arguments)
    before = sorted(out.rglob("*"))
    refuse(number)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "cannot be written" in printed.err
    assert f"{os.strerror(number)} ({out}); name another place" in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(out.rglob("*")) == before


def test_the_parts_of_a_demo_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(potstill.demo.demo, "prepare", work)
    (tmp_path / "report.html").mkdir()
    argv = ["demo", "--output_dir", str(tmp_path), "--overwrite_output_dir"]
    assert main(argv) == 1
    assert "report.html cannot be written, because it is a folder" in capsys.readouterr().err
    (tmp_path / "report.html").rmdir()
    (tmp_path / "without-teacher").write_text("")
    assert main(argv) == 1
    assert "without-teacher is a file: name a folder" in capsys.readouterr().err
