"""What goes wrong in mid-training stops with one sentence, and the last good checkpoint stays good."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, checkpoints, distillation, new_trainer, tensors
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill import PotstillError, distill
from potstill.training import distill as distilling
from potstill.training import output
from potstill.training.step import DistillationStep


def spoil_loss(monkeypatch: pytest.MonkeyPatch, step: int, value: float = float("nan")) -> None:
    """Make the loss of the second of four micro-batches of a step something that is no number."""
    forward, calls = DistillationStep.forward, 0

    def spoilt(self: DistillationStep, **batch: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        losses = forward(self, **batch)
        return {name: loss * value for name, loss in losses.items()} if calls == 4 * (step - 1) + 2 else losses

    def positional(self: DistillationStep, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return spoilt(self, input_ids=input_ids, positions=positions, labels=labels)

    monkeypatch.setattr(DistillationStep, "forward", positional)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("logging_steps", [1, 50], ids=["found when logging", "found when saving"])
def test_a_loss_that_is_no_number(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logging_steps: int,
    value: float,
) -> None:
    spoil_loss(monkeypatch, 7, value)
    folder = tmp_path / "student"
    with pytest.raises(PotstillError) as stopped:
        distill(distillation(teacher_folder, corpus_folder, folder, save_steps=3, logging_steps=logging_steps))
    assert "The loss at step 7 is not a finite number" in str(stopped.value)
    assert str(folder / "checkpoint-6") in str(stopped.value)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-6", "recipe.yaml"]
    assert all(torch.isfinite(tensor).all() for tensor in tensors(folder / "checkpoint-6").values())

    monkeypatch.undo()
    distill(distillation(teacher_folder, corpus_folder, folder, resume_from_checkpoint="true"))
    assert all(torch.isfinite(tensor).all() for tensor in tensors(folder).values())


def test_a_loss_that_is_no_number_in_the_last_step(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_loss(monkeypatch, 4)
    args = distillation(
        teacher_folder, corpus_folder, tmp_path / "student", max_steps=4, logging_steps=50, save_strategy="no"
    )
    with pytest.raises(PotstillError, match=r"The loss at step 4 .* start again with a lower --learning_rate"):
        distill(args)
    assert list((tmp_path / "student").iterdir()) == []


class AfterStep(TrainerCallback):
    """Do something to the student once it has taken a step."""

    def __init__(self, step: int, action: Callable[[torch.nn.Module], None]) -> None:
        self.step, self.action = step, action

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step + 1 == self.step:
            self.action(kwargs["model"])


def test_a_weight_that_is_no_number_is_not_saved(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    def spoil(model: torch.nn.Module) -> None:
        next(model.parameters()).data[0, 0] = float("nan")

    folder = tmp_path / "student"
    args = distillation(teacher_folder, corpus_folder, folder, save_steps=3)
    with pytest.raises(PotstillError, match=r"A weight after step 6 is not a finite number.*checkpoint-3"):
        new_trainer(args, [AfterStep(6, spoil)]).train()
    assert checkpoints(folder) == ["checkpoint-3"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let every write beyond so many bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


MODEL_BYTES, OPTIMIZER_BYTES = 60_000, 150_000  # of the student of the fixtures, each less than what is written


@pytest.mark.parametrize(
    ("size", "too_large", "mend"),
    [
        (MODEL_BYTES, {"model.safetensors", "optimizer.pt"}, "raise the limit on the size of a file (ulimit -f)"),
        (OPTIMIZER_BYTES, {"optimizer.pt"}, "check that the disk is not full"),
    ],
    ids=["for the weights", "for the optimizer"],
)
def test_disk_full_while_saving(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, size: int, too_large: set[str], mend: str
) -> None:
    folder = tmp_path / "student"
    args = distillation(teacher_folder, corpus_folder, folder, max_steps=9, save_steps=3)
    with largest_file(10**9):
        limit = AfterStep(6, lambda model: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))
        with pytest.raises(PotstillError) as stopped:
            new_trainer(args, [limit]).train()
    message = str(stopped.value)
    assert message.startswith(f"Could not write {folder / 'checkpoint-6'} (")
    assert message.endswith(f"{mend}; the last good checkpoint is {folder / 'checkpoint-3'}.")
    assert "\n" not in message
    assert checkpoints(folder) == ["checkpoint-3"]
    assert {file.name for file in (folder / "checkpoint-3").iterdir() if file.stat().st_size > size} == too_large

    distill(
        distillation(teacher_folder, corpus_folder, folder, max_steps=9, save_steps=3, resume_from_checkpoint="true")
    )
    uninterrupted = distill(
        distillation(teacher_folder, corpus_folder, tmp_path / "uninterrupted", max_steps=9, save_steps=3)
    )
    assert_same_tensors(tensors(folder), tensors(uninterrupted))


def test_disk_full_while_writing_the_output(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_full_disk(*args: Any) -> None:
        with largest_file(MODEL_BYTES):
            output.write_output(*args)

    folder = tmp_path / "student"
    monkeypatch.setattr(distilling, "write_output", on_a_full_disk)
    with pytest.raises(PotstillError, match=r"Could not write .*the last good checkpoint is .*checkpoint-2"):
        distill(distillation(teacher_folder, corpus_folder, folder, max_steps=2))
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "recipe.yaml"]


@pytest.mark.parametrize("name", ["teacher", "corpus"])
def test_what_a_run_reads_is_not_overwritten(teacher_folder: Path, corpus_folder: Path, name: str) -> None:
    folder = {"teacher": teacher_folder, "corpus": corpus_folder}[name]
    before = sorted(folder.rglob("*"))
    with pytest.raises(PotstillError, match=f"is the folder of --{name}, which would be lost"):
        distill(distillation(teacher_folder, corpus_folder, folder, overwrite_output_dir=True))
    assert sorted(folder.rglob("*")) == before
