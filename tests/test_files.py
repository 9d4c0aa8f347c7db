"""A folder is the old one or the new one, whole, whatever comes in between."""

import os
import signal
from pathlib import Path

import pytest

from potstill.errors import PotstillError, first_line
from potstill.files import (
    check_output_dir,
    complete_folder,
    recover_folder,
    recover_folders,
    replace_folder,
    write_text,
)


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder_of(tmp_path / ".new.partial", "of a killed run")
    with complete_folder(tmp_path / "new") as partial:
        assert list(partial.iterdir()) == []
        (partial / "file").write_text("new")
        assert not (tmp_path / "new").exists()
    assert tree(tmp_path) == {"new/file": "new"}
    with complete_folder(tmp_path / "new") as partial:
        (partial / "file").write_text("newer")
        assert (tmp_path / "new" / "file").read_text() == "new"
    assert tree(tmp_path) == {"new/file": "newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_a_body_that_ends_early_changes_nothing(tmp_path: Path, number: int | None) -> None:
    folder = folder_of(tmp_path / "folder", "old")
    handler = signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        with complete_folder(folder) as partial:
            (partial / "file").write_text("half")
            if number is None:
                raise ValueError
            signal.raise_signal(number)

    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        fail()
    assert tree(tmp_path) == {"folder/file": "old"}
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("renamings", [0, 1])
def test_a_renaming_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamings: int) -> None:
    folder, rename, done = folder_of(tmp_path / "folder", "old"), Path.rename, []

    def failing(path: Path, target: Path) -> Path:
        done.append(path)
        if len(done) == renamings + 1:
            raise OSError("the disk is gone")
        return rename(path, target)

    def replace() -> None:
        with complete_folder(folder) as partial:
            (partial / "file").write_text("new")
            monkeypatch.setattr(Path, "rename", failing)

    with pytest.raises(OSError, match="the disk is gone"):
        replace()
    assert tree(tmp_path) == {"folder/file": "old"}


def test_a_kill_between_the_renamings_is_undone_and_one_after_them_finished(tmp_path: Path) -> None:
    folder, replaced = tmp_path / "checkpoint-3", tmp_path / ".checkpoint-3.replaced"
    folder_of(replaced, "old")
    recover_folder(folder)
    assert tree(tmp_path) == {"checkpoint-3/file": "old"}
    folder_of(replaced, "older")
    recover_folder(folder)
    assert tree(tmp_path) == {"checkpoint-3/file": "old"}
    recover_folder(folder)
    recover_folder(tmp_path / "never there")
    assert tree(tmp_path) == {"checkpoint-3/file": "old"}

    folder.rename(replaced)
    folder_of(tmp_path / ".notes.replaced", "of someone else")
    recover_folders(tmp_path, "checkpoint-*")
    assert tree(tmp_path) == {"checkpoint-3/file": "old", ".notes.replaced/file": "of someone else"}


def test_what_a_kill_moved_away_is_not_lost_to_the_next_writer(tmp_path: Path) -> None:
    folder_of(tmp_path / ".folder.replaced", "old")
    with pytest.raises(ValueError, match="no more"), complete_folder(tmp_path / "folder"):
        raise ValueError("no more")
    with pytest.raises(PotstillError, match="is not empty"):
        check_output_dir(tmp_path / "folder", overwrite=False)
    assert tree(tmp_path) == {"folder/file": "old"}

    (tmp_path / "folder").rename(tmp_path / ".folder.replaced")
    replace_folder(folder_of(tmp_path / "new", "new"), tmp_path / "folder")
    assert tree(tmp_path) == {"folder/file": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    folder = folder_of(tmp_path / "disk" / "folder", "old")
    link = tmp_path / "link"
    link.symlink_to(folder)
    with complete_folder(link) as partial:
        (partial / "file").write_text("new")
    assert link.is_symlink()
    assert (link / "file").read_text() == "new"
    folder.rename(tmp_path / "disk" / ".folder.replaced")
    recover_folder(link)
    assert (link / "file").read_text() == "new"


def test_a_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output_dir("new", overwrite=False) == Path("new")
    assert check_output_dir(".", overwrite=False) == Path()
    assert check_output_dir("~/new", overwrite=False) == tmp_path / "new"
    folder = folder_of(tmp_path / "folder", "old")
    assert check_output_dir(folder, overwrite=True) == folder
    for wrong, told in (
        (folder, "is not empty"),
        ("/", "/ is not empty"),
        (folder / "file", "is a file"),
        ("", "is missing"),
        (None, "is missing"),
    ):
        with pytest.raises(PotstillError, match=told):
            check_output_dir(wrong, overwrite=False)
    assert not os.path.lexists(tmp_path / "new")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("No space left.", "No space left"),
        ("\n Cannot open:\n  more\n", "Cannot open"),
        ("x. y...", "x. y"),
        ("", "ValueError"),
        (" . ", "ValueError"),
    ],
)
def test_first_line(message: str, said: str) -> None:
    assert first_line(ValueError(message)) == said


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.json"
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    (path.parent / f".file.json.{2**31 - 1}.partial").write_text("of a killed run")
    write_text(path, "newer")
    assert tree(tmp_path) == {"new/file.json": "newer"}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PotstillError, match=r"file\.json cannot be written: No space left on device\."):
        write_text(path, "newest")
    assert tree(tmp_path) == {"new/file.json": "newer"}
    with pytest.raises(PotstillError, match="cannot be written"):
        write_text(path / "below" / "a file", "")


def test_a_folder_begun_does_not_silence_who_says_why(tmp_path: Path, signals_restored: None) -> None:
    """The command line's own handler, which tells the user, is called before the folder goes away."""
    said: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: said.append(number))
    with pytest.raises(SystemExit) as ended, complete_folder(tmp_path / "out"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert said == [signal.SIGTERM]
    assert list(tmp_path.iterdir()) == []
