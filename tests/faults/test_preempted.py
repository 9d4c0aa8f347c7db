"""A run that is told to end saves a checkpoint of the current step, has a status of its own, and goes on later."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import assert_same_tensors, checkpoints, distillation, send_signal_in_step, tensors

from potstill import distill
from potstill.cli import main
from potstill.training.control import TrainingInterrupted
from potstill.training.trainer import DistillationTrainer

SIZES: dict[str, Any] = {"max_steps": 6, "save_strategy": "no"}


def command(teacher: Path, corpus: Path, folder: Path) -> list[str]:
    flags = "--max_steps 6 --save_strategy no --per_device_train_batch_size 2 --gradient_accumulation_steps 4"
    flags += " --learning_rate 3e-3 --eval_strategy no --eval_on_start false --use_cpu --resume_from_checkpoint auto"
    return ["distill", "--teacher", str(teacher), "--corpus", str(corpus), "--output_dir", str(folder), *flags.split()]


@pytest.fixture(scope="module")
def whole(teacher_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "student"
    return distill(distillation(teacher_folder, corpus_folder, folder, **SIZES))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_each_signal_has_a_status_and_the_same_command_goes_on(
    whole: Path,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
    number: int,
) -> None:
    folder = tmp_path / "student"
    same = command(teacher_folder, corpus_folder, folder)
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 3, micro_batch=2, number=number)
        assert main(same) == 128 + number
    assert checkpoints(folder) == ["checkpoint-3"]
    assert main(same) == 0
    assert_same_tensors(tensors(folder), tensors(whole))


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ((signal.SIGUSR1, signal.SIGUSR1), 128 + signal.SIGUSR1),  # a warning that is repeated
        ((signal.SIGUSR1, signal.SIGTERM), 128 + signal.SIGTERM),  # and then comes true in a long step
        ((signal.SIGTERM, signal.SIGUSR1), 128 + signal.SIGTERM),
    ],
)
def test_a_warning_and_a_signal_save_a_checkpoint_too(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: tuple[int, int],
    status: int,
) -> None:
    for micro_batch, number in enumerate(signals):
        send_signal_in_step(monkeypatch, 3, micro_batch, number)
    with pytest.raises(TrainingInterrupted) as stopped:
        distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **SIZES))
    assert stopped.value.exit_status == status
    assert checkpoints(tmp_path / "student") == ["checkpoint-3"]


def test_a_signal_during_an_evaluation_saves_the_step_before_it(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = DistillationTrainer.held_out

    def signalled(self: DistillationTrainer, blocks: Any) -> dict[str, float]:
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return held_out(self, blocks)

    sizes = SIZES | {"eval_strategy": "steps", "eval_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "held_out", signalled)
        with pytest.raises(TrainingInterrupted) as stopped:
            distill(distillation(teacher_folder, corpus_folder, tmp_path / "parts", **sizes))
    assert stopped.value.checkpoint == tmp_path / "parts" / "checkpoint-2"
    assert checkpoints(tmp_path / "parts") == ["checkpoint-2"]
    sizes["resume_from_checkpoint"] = "auto"
    parts = distill(distillation(teacher_folder, corpus_folder, tmp_path / "parts", **sizes))
    sizes["resume_from_checkpoint"] = None
    whole = distill(distillation(teacher_folder, corpus_folder, tmp_path / "other", **sizes))
    assert_same_tensors(tensors(parts), tensors(whole))
    steps = [
        [entry["step"] for entry in json.loads((folder / "results.json").read_text())["log_history"]]
        for folder in (parts, whole)
    ]
    assert steps[0] == steps[1]


def test_an_interrupted_run_keeps_the_checkpoint_that_it_names(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Trainer` would keep the best checkpoint alone, and the steps after it would be lost."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "save_total_limit": 1}
    best |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    send_signal_in_step(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted) as stopped:
        distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=6, **best))
    assert stopped.value.checkpoint.is_dir()
