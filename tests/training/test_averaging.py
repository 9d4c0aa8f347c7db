"""The saved weights are the mean of those after each step of the last part of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, distillation, new_trainer, pretraining, send_signal_in_step, tensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from potstill import PotstillError, distill, pretrain
from potstill.training.averaging import AVERAGE, WeightAverage
from potstill.training.control import TrainingInterrupted

AVERAGED = {"average_weights": 0.5, "max_steps": 6, "lr_scheduler_type": "constant_with_warmup"}


class Weights(TrainerCallback):
    """Keeps the weights of the student after each step, in float64."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after.append({name: one.detach().double().clone() for name, one in model.student.named_parameters()})


def test_weights_are_the_mean_of_the_last_steps(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    weights = Weights()
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **AVERAGED)
    trainer = new_trainer(args, [weights])
    trainer.train()
    assert len(weights.after) == 6
    for name, found in trainer.student.named_parameters():
        expected = torch.stack([after[name] for after in weights.after[3:]]).mean(0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=1e-12, msg=name)
        assert name.endswith("key.bias") or not torch.equal(found.double(), weights.after[-1][name]), name


def test_a_long_mean_keeps_the_share_of_every_step() -> None:
    module, states = nn.Linear(8, 4), torch.Generator().manual_seed(3)
    state = TrainerState()
    average = WeightAverage(module, 1.0, lambda state: state.global_step / 20_000)
    sums = torch.zeros(4, 8, dtype=torch.float64)
    for step in range(1, 20_001):
        state.global_step = step
        module.weight.data = 1 + 1e-3 * torch.randn(4, 8, generator=states) + 1e-3 * step / 20_000
        sums += module.weight.data.double()
        average.on_step_end(None, state, None)  # type: ignore[arg-type]
    average.apply()
    assert average.steps == 20_000
    assert torch.equal(module.weight.data, (sums / 20_000).float())


@pytest.mark.parametrize(("share", "steps", "first"), [(0.2, 10, 9), (0.9, 10, 2), (1.0, 5, 1), (0.01, 10, 10)])
def test_the_part_of_the_run(share: float, steps: int, first: int) -> None:
    state = TrainerState()
    average = WeightAverage(nn.Linear(1, 1), share, lambda state: state.global_step / steps)
    for step in range(1, steps + 1):
        state.global_step = step
        average.on_step_end(None, state, None)  # type: ignore[arg-type]
    assert (average.first_step, average.steps) == (first, steps - first + 1)


@pytest.fixture(scope="module")
def whole(teacher_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged") / "student"
    return distill(distillation(teacher_folder, corpus_folder, folder, eval_strategy="epoch", **AVERAGED))


@pytest.mark.parametrize("step", [2, 5], ids=["before the mean", "within the mean"])
def test_resumed_run_is_bit_identical(
    whole: Path,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
    step: int,
) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **AVERAGED)
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, step)
        with pytest.raises(TrainingInterrupted):
            distill(args)
    assert (tmp_path / "student" / f"checkpoint-{step}" / AVERAGE).is_file() == (step == 5)
    args.resume_from_checkpoint = "true"
    assert_same_tensors(tensors(distill(args)), tensors(whole))


def test_the_last_checkpoint_gives_the_same_mean(
    whole: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    """As if writing the output had failed after training."""
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **AVERAGED)
    args.resume_from_checkpoint = str(whole / "checkpoint-6")
    assert_same_tensors(tensors(distill(args)), tensors(whole))


def test_results_and_card(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    record, final = results["averaged_weights"], results["held_out"]["final"]
    assert (record["share"], record["first_step"], record["steps"]) == (0.5, 4, 3)
    evaluations = [entry for entry in results["log_history"] if "eval_loss" in entry]
    last_step, mean = evaluations[-2:]  # the run evaluated at its last step already
    assert last_step["step"] == mean["step"] == 6
    assert record["held_out_of_last_step"]["loss"] == last_step["eval_loss"] != mean["eval_loss"] == final["loss"]
    card = (whole / "README.md").read_text()
    assert "mean of those after the steps 4 to 6" in card
    assert f"{final['loss']:.4f}. The weights after the last step alone have {last_step['eval_loss']:.4f}." in card


def test_the_mean_begins_after_the_last_growth(corpus_folder: Path, tmp_path: Path) -> None:
    growth = {"grow": "2,4", "grow_at": "0.5", "max_steps": 6}
    early = pretraining(corpus_folder, tmp_path / "early", average_weights=0.6, **growth)
    with pytest.raises(PotstillError, match=r"--average_weights 0\.6 begins before the model grows .* at 0\.5"):
        pretrain(early)
    folder = pretrain(pretraining(corpus_folder, tmp_path / "model", average_weights=0.5, **growth))
    record = json.loads((folder / "results.json").read_text())["averaged_weights"]
    assert (record["first_step"], record["steps"]) == (4, 3)
    checkpoint = folder / "checkpoint-6"
    sums = load_file(checkpoint / AVERAGE)
    name = "bert.encoder.layer.3.output.dense.weight"
    assert torch.equal(tensors(folder)[name], (sums[f"student.{name}"] / 3).float())
    assert not torch.equal(tensors(folder)[name], tensors(checkpoint)[name])


def test_what_does_not_go_together(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    for options, says in (
        ({"average_weights": 0.0}, "--average_weights is 0.0: it must be above 0"),
        ({"average_weights": 0.2, "load_best_model_at_end": True}, "--load_best_model_at_end .* leave one of them out"),
        ({"average_weights": 0.2, "fixed_point": "{weights: Q4.12}"}, "--fixed_point .* leave one of them out"),
    ):
        with pytest.raises(PotstillError, match=says):
            distillation(teacher_folder, corpus_folder, tmp_path / "student", **options)


def test_sums_of_another_model(tmp_path: Path) -> None:
    average = WeightAverage(nn.Linear(2, 2), 0.5, lambda state: 1.0)
    save_file({"weight": torch.zeros(3)}, tmp_path / AVERAGE, metadata={"steps": "1", "first_step": "1"})
    with pytest.raises(PotstillError, match="holds the weights of another model"):
        average.load(tmp_path)
    (tmp_path / AVERAGE).write_bytes(b"nothing")
    with pytest.raises(PotstillError, match="cannot be read"):
        average.load(tmp_path)


@pytest.mark.parametrize("longest", [8, 30])
def test_a_longer_run_keeps_no_step_from_before_its_last_part(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, longest: int
) -> None:
    """The sums of a run of 4 steps hold the steps 3 and 4, which are in the first half of a longer one."""
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **AVERAGED | {"max_steps": 4})
    distill(args)
    weights = Weights()
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **AVERAGED | {"max_steps": longest})
    args.resume_from_checkpoint = "true"
    args.overwrite_output_dir = True
    trainer = new_trainer(args, [weights])
    trainer.train("true")
    assert trainer.average is not None
    assert (trainer.average.first_step, trainer.average.steps) == (longest // 2 + 1, longest // 2)
    for name, found in trainer.student.named_parameters():
        expected = torch.stack([after[name] for after in weights.after[longest // 2 - 4 :]]).mean(0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=1e-12, msg=name)


def test_a_length_whose_last_part_begins_within_the_sums_is_refused(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    options = {"corpus": corpus_folder, "teacher": teacher_folder}
    first = distillation(options["teacher"], options["corpus"], tmp_path / "student", **AVERAGED | {"max_steps": 4})
    distill(first)
    longer = distillation(options["teacher"], options["corpus"], tmp_path / "student", **AVERAGED | {"max_steps": 7})
    longer.resume_from_checkpoint = "true"
    longer.overwrite_output_dir = True
    with pytest.raises(PotstillError, match=r"summed the weights since step 3, .* Give the length that the run began"):
        distill(longer)


@pytest.mark.parametrize(("progress", "kept"), [(0.3, False), (0.8, None)])
def test_a_changed_budget_of_time(progress: float, kept: bool | None) -> None:
    """Which steps are in the last part of a budget is not known, so sums that may be wrong are not used."""
    average = WeightAverage(nn.Linear(1, 1), 0.5, lambda state: progress)
    average.steps, average.first_step = 2, 9
    if kept is None:
        with pytest.raises(PotstillError, match="since step 9"):
            average.fit_length(TrainerState(max_steps=10), by_time=True)
    else:
        assert average.fit_length(TrainerState(max_steps=10), by_time=True)
        assert (average.steps, average.first_step) == (0, 0)
