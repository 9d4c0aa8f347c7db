"""A folder that a new run overwrites holds the old output or the new one, whenever the run ends."""

import json
import signal
from pathlib import Path

import pytest
from runs import distillation, send_signal_in_step

from potstill import PotstillError, distill
from potstill.training import overwriting
from potstill.training.checkpoints import last_checkpoint
from potstill.training.control import TrainingInterrupted
from potstill.training.overwriting import plan_overwriting, recover_old_output, replacing_old_output

OLD = ["checkpoint-9", "config.json", "model.safetensors", "results.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An earlier run's output, and a file that is none of a run's."""
    path = tmp_path / "student"
    (path / "checkpoint-9").mkdir(parents=True)
    (path / "checkpoint-9" / "weights").write_text("old")
    for name in (*OLD[1:], "thesis.txt"):
        (path / name).write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_output_stays_until_the_new_one_is_there(folder: Path) -> None:
    plan_overwriting(folder)
    assert last_checkpoint(folder) is None
    assert {*OLD, "thesis.txt"} < set(names(folder))
    with replacing_old_output(folder):
        (folder / "checkpoint-1").mkdir()
    assert names(folder) == ["checkpoint-1", "thesis.txt"]
    with replacing_old_output(folder):  # once is enough
        (folder / "config.json").write_text("new")
    assert names(folder) == ["checkpoint-1", "config.json", "thesis.txt"]


def test_a_first_result_that_fails_brings_the_old_output_back(folder: Path) -> None:
    before = names(folder)
    plan_overwriting(folder)

    def fail() -> None:
        with replacing_old_output(folder):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert names(folder) == before


@pytest.mark.parametrize("moves", range(len(OLD) + 2))
def test_a_kill_at_any_move_leaves_one_of_the_two(folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    before, rename, done = names(folder), Path.rename, []
    plan_overwriting(folder)

    class KilledError(BaseException):
        pass

    def killed(path: Path, target: Path) -> Path:
        if len(done) == moves:
            raise KilledError
        done.append(path)
        return rename(path, target)

    def publish() -> None:
        with replacing_old_output(folder):
            (folder / "checkpoint-1").mkdir()
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(overwriting, "recover_old_output", lambda folder: None)  # a kill lets nothing run
        with pytest.raises(KilledError):
            publish()
    recover_old_output(folder)
    assert names(folder) == (before if moves <= len(OLD) else ["checkpoint-1", "thesis.txt"])


def test_a_run_that_is_refused_changes_nothing(folder: Path, make_bad_corpus: Path, teacher_folder: Path) -> None:
    before = names(folder)
    args = distillation(teacher_folder, make_bad_corpus, folder, overwrite_output_dir=True)
    with pytest.raises(PotstillError):
        distill(args)
    assert names(folder) == before


@pytest.fixture
def make_bad_corpus(tmp_path: Path) -> Path:
    (tmp_path / "no-corpus").mkdir()
    return tmp_path / "no-corpus"


def test_an_interrupted_run_leaves_its_own_checkpoint_alone(
    folder: Path, teacher_folder: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_signal_in_step(monkeypatch, 2, number=signal.SIGINT)
    with pytest.raises(TrainingInterrupted):
        distill(distillation(teacher_folder, corpus_folder, folder, overwrite_output_dir=True))
    assert names(folder) == ["checkpoint-2", "recipe.yaml", "thesis.txt"]


@pytest.mark.parametrize("content", ["[", '["config.json",', "\0" * 40])
def test_a_damaged_list_of_old_files_is_one_sentence(folder: Path, content: str) -> None:
    plan_overwriting(folder)
    (folder / overwriting.JOURNAL).write_text(content)
    with (
        pytest.raises(PotstillError, match=r"overwrite\.json is damaged: .*again with --overwrite_output_dir"),
        replacing_old_output(folder),
    ):
        pass
    assert {*OLD, "thesis.txt"} < set(names(folder))


def test_a_list_of_old_files_cannot_name_other_files(folder: Path) -> None:
    (folder.parent / "config.json").write_text("of another model")
    plan_overwriting(folder)
    listed = ["thesis.txt", "../config.json", str(folder.parent / "config.json"), ["config.json"], "results.json"]
    (folder / overwriting.JOURNAL).write_text(json.dumps(listed))
    with replacing_old_output(folder):
        pass
    assert names(folder) == sorted({*OLD, "thesis.txt"} - {"results.json"})
    assert (folder.parent / "config.json").read_text() == "of another model"
