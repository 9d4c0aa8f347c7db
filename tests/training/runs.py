"""Small runs, ways of disturbing them, and comparing what they leave."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from potstill import DistillationArguments, DistillationTrainer, PretrainingArguments, build_student
from potstill.student import load_masked_lm

STEPS_PER_EPOCH = 5  # of 2 x 4 blocks, on the corpus of the fixtures
LOSSES = ("loss", "loss_ce", "loss_mlm", "loss_cos")

Learned = tuple[list[dict[str, float]], dict[str, Tensor]]  # the losses of every step, and the weights after the last

# Two epochs of which each leaves out six blocks, every step one batch of eight blocks.
WHOLE_BATCHES: dict[str, Any] = {
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
}


def distillation(teacher: Path | list[str], corpus: Path, output_dir: Path, **options: Any) -> DistillationArguments:
    """Three epochs of five steps, each of four micro-batches; the student has dropout."""
    sizes = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "eval_strategy": "no",
        "eval_on_start": False,
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "use_cpu": True,
    }
    teachers = teacher if isinstance(teacher, list) else str(teacher)
    return DistillationArguments(teacher=teachers, corpus=str(corpus), output_dir=str(output_dir), **(sizes | options))


def pretraining(corpus: Path, output_dir: Path, **options: Any) -> PretrainingArguments:
    """Twelve steps of a BERT of 4 layers, 32 wide, with dropout."""
    sizes = {
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "eval_strategy": "no",
        "eval_on_start": False,
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "use_cpu": True,
    }
    return PretrainingArguments(corpus=str(corpus), output_dir=str(output_dir), **(sizes | options))


def new_trainer(args: DistillationArguments, callbacks: list[TrainerCallback] | None = None) -> DistillationTrainer:
    """The trainer that `distill` makes of these arguments."""
    teacher = load_masked_lm(args.teacher)
    student = build_student(teacher, args.num_hidden_layers, args.layers or "alternate", seed=args.seed)
    return DistillationTrainer(student, args.corpus, args, teacher, callbacks=callbacks)


def send_signal_in_step(
    monkeypatch: pytest.MonkeyPatch, step: int, micro_batch: int = 0, number: int = signal.SIGTERM
) -> None:
    """Have the process signalled while the trainer computes a micro-batch of that step."""
    compute_loss = DistillationTrainer.compute_loss
    seen = 0

    def signalled(self: DistillationTrainer, *args: Any, **options: Any) -> Any:
        nonlocal seen
        if self.state.global_step + 1 == step:
            if seen == micro_batch:
                os.kill(os.getpid(), number)
            seen += 1
        return compute_loss(self, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", signalled)


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def learned(output: Path) -> Learned:
    """Read from a run's output folder what it learned and how."""
    history = json.loads((output / "results.json").read_text())["log_history"]
    return [{name: entry[name] for name in LOSSES} for entry in history if "loss" in entry], tensors(output)


def assert_alike(ours: Learned, theirs: Learned) -> None:
    """Assert that two runs differ by rounding alone."""
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    assert ours[1].keys() == theirs[1].keys()
    for name in theirs[1]:
        torch.testing.assert_close(ours[1][name], theirs[1][name], atol=2e-4, rtol=0, msg=name)


def checkpoints(folder: Path) -> list[str]:
    """What lies in an output folder besides the finished output, hidden files included."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "checkpoint")))
