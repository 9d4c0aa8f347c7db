"""A checkpoint with a turned bit or without a part is named before it does harm, and the newest good one is offered."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_same_tensors, distillation, new_trainer, pretraining, tensors

from potstill import PotstillError, distill, pretrain
from potstill.training.checkpoints import DamagedCheckpointError, find_checkpoint, verify, write_checksums

STEPS = 6
PARTS = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
PARTS += ["potstill_state.json", "config.json"]


@pytest.fixture(scope="module")
def finished(teacher_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "student"
    options = {"max_steps": STEPS, "save_steps": 2, "save_total_limit": 5}
    return distill(distillation(teacher_folder, corpus_folder, folder, **options))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, its last checkpoint and its output not there."""
    folder = tmp_path / "student"
    folder.mkdir()
    for name in ("checkpoint-2", "checkpoint-4", "recipe.yaml"):
        (shutil.copytree if name.startswith("checkpoint") else shutil.copy)(finished / name, folder / name)
    return folder


def turn_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [turn_a_bit, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("part", PARTS)
def test_damage_is_named_and_the_good_one_offered(run: Path, part: str, damage: Callable[[Path], object]) -> None:
    damage(run / "checkpoint-4" / part)
    with pytest.raises(DamagedCheckpointError, match=rf"{part}|potstill_state\.json") as error:
        find_checkpoint("true", str(run))
    assert f"resume with --resume_from_checkpoint {run / 'checkpoint-2'}" in str(error.value)
    with pytest.raises(DamagedCheckpointError, match="checkpoint-2"):
        find_checkpoint(run / "checkpoint-4", None)


@pytest.mark.parametrize("part", PARTS)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Path, part: str) -> None:
    file = run / "checkpoint-4" / part
    file.unlink()
    os.mkfifo(file)
    command = (
        "import sys; from potstill.training.checkpoints import find_checkpoint; find_checkpoint('auto', sys.argv[1])"
    )
    found = subprocess.run([sys.executable, "-c", command, run], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    assert "Skipped: " in found.stderr
    assert find_checkpoint("auto", str(run)) == run / "checkpoint-2"


@pytest.mark.parametrize("content", ["[" * 100_000, "null", "[]", "3", '"x"', "\0" * 50, '{"global_step": "x"}'])
@pytest.mark.parametrize("name", ["trainer_state.json", "potstill_state.json"])
def test_any_content_of_a_state_file_is_a_sentence(
    run: Path, teacher_folder: Path, corpus_folder: Path, name: str, content: str
) -> None:
    checkpoint = run / "checkpoint-4"
    (checkpoint / name).write_text(content)
    write_checksums(checkpoint)  # even where the checksums agree
    args = distillation(teacher_folder, corpus_folder, run, max_steps=STEPS, resume_from_checkpoint="true")
    with pytest.raises(PotstillError, match=name):
        distill(args)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_part_that_cannot_be_read_is_a_sentence(
    run: Path, teacher_folder: Path, corpus_folder: Path, name: str
) -> None:
    (run / "checkpoint-4" / name).write_bytes(b"no pickle")
    write_checksums(run / "checkpoint-4")
    args = distillation(teacher_folder, corpus_folder, run, max_steps=STEPS, resume_from_checkpoint="true")
    with pytest.raises(PotstillError, match=r"Cannot resume from .*checkpoint-4"):
        distill(args)


def test_auto_takes_the_newest_good_one_and_says_so(
    run: Path, finished: Path, teacher_folder: Path, corpus_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turn_a_bit(run / "checkpoint-4" / "optimizer.pt")
    options = {"max_steps": STEPS, "save_steps": 2, "save_total_limit": 5}
    distill(distillation(teacher_folder, corpus_folder, run, resume_from_checkpoint="auto", **options))
    told = capsys.readouterr().err
    assert "checkpoint-4 is damaged: optimizer.pt" in told
    assert "step 3/6" in told
    assert "step 2/6" not in told
    assert_same_tensors(tensors(run), tensors(finished))


def test_auto_starts_from_the_start_where_there_is_no_checkpoint(
    finished: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    args = distillation(teacher_folder, corpus_folder, folder, max_steps=STEPS, resume_from_checkpoint="auto")
    assert_same_tensors(tensors(distill(args)), tensors(finished))


def test_auto_does_not_write_over_something_else(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    args = distillation(teacher_folder, corpus_folder, tmp_path, max_steps=1, resume_from_checkpoint="auto")
    with pytest.raises(PotstillError, match="is not empty"):
        distill(args)


def test_auto_does_not_write_over_a_finished_model_whose_checkpoints_are_damaged(
    finished: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(finished, folder)
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "scheduler.pt").unlink()
    before = tensors(folder)
    args = distillation(teacher_folder, corpus_folder, folder, max_steps=1, resume_from_checkpoint="auto")
    with pytest.raises(PotstillError, match="is not empty"):
        distill(args)
    assert_same_tensors(tensors(folder), before)


def test_the_folder_of_a_run_is_no_checkpoint_and_its_newest_good_one_is_offered(run: Path) -> None:
    turn_a_bit(run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(PotstillError, match=r"folder of a run.*--resume_from_checkpoint .*checkpoint-2\.$"):
        find_checkpoint(str(run), str(run))


def test_the_checksums_are_those_of_sha256sum(finished: Path) -> None:
    checkpoint = finished / "checkpoint-4"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=checkpoint, check=True, capture_output=True)
    listed = {line.split("  ")[1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in checkpoint.iterdir()} - {"SHA256SUMS"}


def test_a_grown_checkpoint_has_checksums_of_its_own(corpus_folder: Path, tmp_path: Path) -> None:
    folder = pretrain(pretraining(corpus_folder, tmp_path / "model", grow="2,4", max_steps=4, save_total_limit=9))
    grown = sorted(folder.glob("checkpoint-*"))
    assert len(grown) > 1
    for checkpoint in grown:
        verify(checkpoint)


def test_the_random_state_may_be_missing_after_another_number_of_processes(
    run: Path, teacher_folder: Path, corpus_folder: Path
) -> None:
    checkpoint = run / "checkpoint-4"
    state = json.loads((checkpoint / "potstill_state.json").read_text())
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    options = {"max_steps": STEPS, "resume_from_checkpoint": "true"}
    write_checksums(checkpoint)
    with pytest.raises(PotstillError, match=r"it has no rng_state\.pth"):
        distill(distillation(teacher_folder, corpus_folder, run, **options))
    state["run"]["processes"] = 2
    (checkpoint / "potstill_state.json").write_text(json.dumps(state))
    write_checksums(checkpoint)
    distill(distillation(teacher_folder, corpus_folder, run, **options))


def test_a_run_resumed_from_an_earlier_step_leaves_no_later_checkpoint_of_before(
    run: Path, teacher_folder: Path, corpus_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_steps": 3, "save_steps": 1, "save_total_limit": 5, "learning_rate": 1e-4}
    args = distillation(teacher_folder, corpus_folder, run, resume_from_checkpoint=str(run / "checkpoint-2"), **options)
    distill(args)
    assert find_checkpoint("true", str(run)) == run / "checkpoint-3"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert f"Removed {run / 'checkpoint-4'}" in capsys.readouterr().err


def test_a_run_that_begins_anew_removes_no_checkpoint_of_others(
    run: Path, teacher_folder: Path, corpus_folder: Path
) -> None:
    args = distillation(teacher_folder, corpus_folder, run, max_steps=1, save_total_limit=5)
    new_trainer(args).train()
    assert {"checkpoint-1", "checkpoint-2", "checkpoint-4"} <= {path.name for path in run.iterdir()}
