"""An interrupted and resumed run ends with the very tensors of an uninterrupted one."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import (
    STEPS_PER_EPOCH,
    assert_same_tensors,
    checkpoints,
    distillation,
    new_trainer,
    send_signal_in_step,
    tensors,
)
from torch import Tensor

from potstill import PotstillError, distill
from potstill.cli import main
from potstill.training.control import TrainingInterrupted


@pytest.fixture(scope="module")
def uninterrupted(
    teacher_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "student"
    distill(distillation(teacher_folder, corpus_folder, folder))
    assert json.loads((folder / "config.json").read_text())["dropout"] > 0
    return tensors(folder)


@pytest.mark.parametrize(
    ("step", "micro_batch", "options"),
    [
        pytest.param(8, 3, {}, id="in mid-epoch"),
        pytest.param(8, 1, {}, id="in mid-accumulation"),
        pytest.param(2, 0, {}, id="in the first epoch"),
        pytest.param(STEPS_PER_EPOCH, 3, {}, id="at the end of an epoch"),
        pytest.param(2 * STEPS_PER_EPOCH, 2, {}, id="at the end of the second epoch"),
        pytest.param(7, 0, {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}, id="with evaluations"),
        pytest.param(8, 1, {"save_steps": 3, "save_total_limit": 1}, id="with checkpoints"),
    ],
)
def test_resumed_run_is_bit_identical(
    uninterrupted: dict[str, Tensor],
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
    step: int,
    micro_batch: int,
    options: dict[str, Any],
) -> None:
    folder = tmp_path / "student"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, step, micro_batch)
        with pytest.raises(TrainingInterrupted) as interruption:
            distill(distillation(teacher_folder, corpus_folder, folder, **options))
    checkpoint = folder / f"checkpoint-{step}"
    assert interruption.value.checkpoint == checkpoint
    assert interruption.value.signal == signal.SIGTERM
    assert str(checkpoint) in str(interruption.value)
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step
    assert not (folder / "model.safetensors").exists()

    recipe = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder)]  # as the README says
    assert main(["distill", *recipe, "--resume_from_checkpoint", "true"]) == 0
    assert_same_tensors(tensors(folder), uninterrupted)


def test_a_resumed_run_reads_the_same_samples_of_the_tokens(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
) -> None:
    options = {"soft_targets": "sampled", "max_steps": 4, "layers": "alternate"}
    whole = distill(distillation(teacher_folder, corpus_folder, tmp_path / "whole", **options))
    parts = distillation(teacher_folder, corpus_folder, tmp_path / "parts", **options)
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 2, 1)
        with pytest.raises(TrainingInterrupted):
            distill(parts)
    parts.resume_from_checkpoint = "true"
    assert_same_tensors(tensors(distill(parts)), tensors(whole))


def test_number_of_loading_workers_does_not_matter(
    uninterrupted: dict[str, Tensor],
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "student"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 8, 1)
        with pytest.raises(TrainingInterrupted):
            distill(distillation(teacher_folder, corpus_folder, folder, dataloader_num_workers=2))
    assert_same_tensors(
        tensors(distill(distillation(teacher_folder, corpus_folder, folder, resume_from_checkpoint="true"))),
        uninterrupted,
    )


KILLED_RUN = """
import os, signal, sys
from transformers import Trainer
import torch
from potstill.cli import main

torch.set_num_threads(1)
save = Trainer._save_rng_state

def killed(self, output_dir):
    if self.state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, output_dir)

Trainer._save_rng_state = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_while_saving(
    uninterrupted: dict[str, Tensor], teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    args = distillation(teacher_folder, corpus_folder, folder)
    names = ("teacher", "corpus", "output_dir", "num_train_epochs", "per_device_train_batch_size")
    names += ("gradient_accumulation_steps", "eval_strategy", "eval_on_start", "learning_rate", "use_cpu")
    flags = [f"--{name}={getattr(getattr(args, name), 'value', getattr(args, name))}" for name in names]
    run = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, "distill", *flags, "--save_steps=3"], capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert checkpoints(folder) == [".checkpoint.partial", "checkpoint-3"]

    distill(distillation(teacher_folder, corpus_folder, folder, resume_from_checkpoint="true", save_steps=3))
    assert_same_tensors(tensors(folder), uninterrupted)
    assert ".checkpoint.partial" not in checkpoints(folder)


def test_signal_in_the_last_step_lets_the_run_finish(
    uninterrupted: dict[str, Tensor],
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_signal_in_step(monkeypatch, 3 * STEPS_PER_EPOCH, number=signal.SIGINT)
    folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student"))
    assert_same_tensors(tensors(folder), uninterrupted)


@pytest.mark.parametrize("limit", [{"max_steps": 7}, {"num_train_epochs": 2}])
def test_resuming_a_finished_run_trains_no_further(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, limit: dict[str, int]
) -> None:
    # A constant learning rate: a step too many would not be hidden by a rate that has come down to 0.
    options = {"lr_scheduler_type": "constant", **limit}
    folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    finished, results = tensors(folder), json.loads((folder / "results.json").read_text())
    distill(distillation(teacher_folder, corpus_folder, folder, resume_from_checkpoint="true", **options))
    assert_same_tensors(tensors(folder), finished)
    again = json.loads((folder / "results.json").read_text())
    assert again["cost"]["steps"] == results["cost"]["steps"]
    assert again["held_out"]["final"] == results["held_out"]["final"]


def test_a_second_signal_ends_the_run_at_once(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    send_signal_in_step(monkeypatch, 2, micro_batch=0)
    send_signal_in_step(monkeypatch, 2, micro_batch=1)
    job = [
        "distill",
        f"--teacher={teacher_folder}",
        f"--corpus={corpus_folder}",
        f"--output_dir={tmp_path / 'student'}",
    ]
    job += ["--max_steps=6", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=4", "--use_cpu"]
    assert main(job) == 128 + signal.SIGTERM
    assert checkpoints(tmp_path / "student") == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_checkpoint_of_another_model_is_refused(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "deep", max_steps=1)
    distill(args)
    args = distillation(teacher_folder, corpus_folder, tmp_path / "shallow", max_steps=2, num_hidden_layers=1)
    with pytest.raises(PotstillError, match=r"Cannot resume from .*checkpoint-1"):
        new_trainer(args).train(resume_from_checkpoint=str(tmp_path / "deep" / "checkpoint-1"))


@pytest.mark.parametrize("content", [None, "", "{}", '{"elapsed_seconds": 1'])
def test_a_checkpoint_without_its_state_is_refused(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, content: str | None
) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    if content is not None:
        (checkpoint / "potstill_state.json").write_text(content)
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student")
    with pytest.raises(PotstillError, match=r"no usable potstill_state\.json"):
        new_trainer(args).train(resume_from_checkpoint=str(checkpoint))
