"""Training that reads most blocks cut into short ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, distillation, new_trainer, pretraining, send_signal_in_step, tensors

from potstill import PotstillError, distill
from potstill.corpus import Corpus
from potstill.training.control import RunControl, TrainingInterrupted
from potstill.training.evaluation import held_out_metrics
from potstill.training.pretrain import pretrain
from potstill.training.step import DistillationStep

SHORT = {"short_block_size": 8, "short_share": 0.5}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the step reads, micro-batch by micro-batch."""
    batches: list[torch.Tensor] = []
    losses = DistillationStep._losses

    def noting(self: DistillationStep, input_ids: torch.Tensor, *others: Any) -> Any:
        batches.append(input_ids)
        return losses(self, input_ids, *others)

    monkeypatch.setattr(DistillationStep, "_losses", noting)
    return batches


def test_every_other_step_is_cut(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, read: list[torch.Tensor]
) -> None:
    size = Corpus.open(corpus_folder).train.block_size
    new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=4, **SHORT)).train()
    whole, cut = (2, size), (2 * size // 8, 8)  # of two blocks, as many tokens
    assert [tuple(batch.shape) for batch in read] == [*[whole] * 4, *[cut] * 4] * 2
    tokenizer = Corpus.open(corpus_folder).tokenizer()
    for batch in read:
        assert set(batch[:, 0].tolist()) == {tokenizer.cls_token_id}
        assert set(batch[:, -1].tolist()) == {tokenizer.sep_token_id}


def test_cut_blocks_first(teacher_folder: Path, corpus_folder: Path, tmp_path: Path, read: list[torch.Tensor]) -> None:
    options = {**SHORT, "short_first": 0.25, "max_steps": 8, "gradient_accumulation_steps": 1}
    new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options)).train()
    size = Corpus.open(corpus_folder).train.block_size
    cut = [batch.shape[1] == 8 for batch in read]
    assert {batch.numel() for batch in read} == {2 * size}  # every step reads as many tokens
    assert cut == [True, True, True, False, False, True, False, False]  # in the last six steps, every third is cut


def test_cut_blocks_first_with_a_limit_of_minutes(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, read: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of steps is not known then: the share of the time counts."""
    times = [0.0, 0.1, 0.2, 0.45, 0.55, 0.7, 0.9, 1.0]
    monkeypatch.setattr(RunControl, "progress", lambda self, state: times[state.global_step])
    options = {"short_block_size": 8, "short_first": 0.5, "short_share": 0.5, "gradient_accumulation_steps": 1}
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_train_minutes=1.0, **options)
    new_trainer(args).train()
    assert [batch.shape[1] == 8 for batch in read] == [True] * 4 + [False] * 3


@pytest.mark.parametrize("first", [0.0, 0.5])
def test_a_resumed_run_cuts_the_same_steps(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    options = {**SHORT, "short_share": 0.75, "short_first": first, "max_steps": 6}
    whole = distill(distillation(teacher_folder, corpus_folder, tmp_path / "whole", **options))
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 3)
        with pytest.raises(TrainingInterrupted):
            distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    again = distillation(teacher_folder, corpus_folder, tmp_path / "student", resume_from_checkpoint="true", **options)
    assert_same_tensors(tensors(distill(again)), tensors(whole))


def test_held_out_text_is_scored_at_both_lengths(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SHORT, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    folder = pretrain(pretraining(corpus_folder, tmp_path / "model", **options))
    final = json.loads((folder / "results.json").read_text())["held_out"]["final"]
    assert final.keys() >= {"loss", "accuracy", "short_loss", "short_accuracy"}
    assert final["short_loss"] != final["loss"]
    said = capsys.readouterr().err
    assert "50% of them cut to 8" in said
    assert f"cut short {final['short_loss']:.3f}" in said
    assert "split to 8 tokens" in (folder / "README.md").read_text()


def test_cut_held_out_text_is_that_of_the_blocks(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", **SHORT))
    found = trainer.evaluate()
    blocks, splitter, masking = trainer.corpus.validation, trainer.splitter, trainer.held_out_labelling
    every = blocks.__getitems__(list(range(len(blocks))))

    class Pieces:
        """The pieces of all blocks, as if the corpus had been prepared so."""

        def __len__(self) -> int:
            return len(every["sample_index"]) * splitter.pieces

        def __getitems__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
            ids, draws = splitter(every["input_ids"], every["sample_index"])
            return {"input_ids": ids[numbers], "sample_index": draws[numbers]}

    expected = held_out_metrics(trainer.student, trainer.teacher, Pieces(), masking, 5, 10_000)
    for name, value in expected.items():
        assert found[f"eval_short_{name}"] == pytest.approx(value, rel=1e-4), name


def test_a_length_that_does_not_divide_the_blocks(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="--short_block_size is 7, but it must divide the blocks"):
        new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", short_block_size=7))
    for option in ({"short_share": 0.0}, {"short_share": 1.1}, {"short_block_size": 2}, {"short_first": -0.1}):
        with pytest.raises(PotstillError, match=f"--{next(iter(option))}"):
            distillation(teacher_folder, corpus_folder, tmp_path / "student", **option)
    with pytest.raises(PotstillError, match=r"--short_share is 0\.5: .* give --short_block_size too"):
        distillation(teacher_folder, corpus_folder, tmp_path / "student", short_share=0.5)
    with pytest.raises(PotstillError, match=r"--short_first is 0\.5: .* give --short_block_size too"):
        distillation(teacher_folder, corpus_folder, tmp_path / "student", short_first=0.5)
    with pytest.raises(PotstillError, match=r"--short_first is 0\.6: it must be .* at most --short_share 0\.5"):
        distillation(teacher_folder, corpus_folder, tmp_path / "student", **SHORT, short_first=0.6)


@pytest.mark.gpu
def test_compiled_and_recorded_at_both_lengths(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    """What is learned is what an eager run learns, up to bfloat16; compiled code draws other dropout."""
    options = {**SHORT, "max_steps": 8, "bf16": True, "use_cpu": False, "gradient_accumulation_steps": 1}
    losses = []
    for name, compiled in (("eager", False), ("compiled", True)):
        trainer = new_trainer(
            distillation(teacher_without_dropout, corpus_folder, tmp_path / name, torch_compile=compiled, **options)
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
