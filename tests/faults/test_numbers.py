"""Numbers that are not finite: the step is named and nothing of it is saved, or it is skipped and counted. Spikes."""

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, checkpoints, distillation, new_trainer, tensors
from torch import Tensor
from transformers import TrainerCallback

from potstill import PotstillError, distill
from potstill.training.loss_watch import DEVIATIONS, FEWEST, RECENT, LossWatch
from potstill.training.trainer import DistillationTrainer

NAN, INF = float("nan"), float("inf")


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], how: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the losses of the second of four micro-batches of some steps."""
    compute, seen = DistillationTrainer.compute_losses, [0]

    def spoilt(self: DistillationTrainer, model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = compute(self, model, inputs)
        seen[0] += 1
        if seen[0] % 4 == 2 and self.state.global_step + 1 in steps:
            how(losses)
        return losses

    monkeypatch.setattr(DistillationTrainer, "compute_losses", spoilt)


def times(value: float, *names: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda losses: losses.update({name: losses[name] * value for name in names})


def no_gradient(losses: dict[str, Tensor]) -> None:
    """Leave the loss as it is, and make its gradient infinite: that of the square root at 0."""
    zero = losses["loss"] - losses["loss"].detach()
    losses["loss"] = losses["loss"] + torch.sqrt(zero.abs())


class Weights(TrainerCallback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.after: dict[int, list[Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after[state.global_step] = [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (times(NAN, "loss"), r"The loss at step 3 is not a finite number, so"),
        (times(INF, "loss", "ce"), r"The loss at step 3 is not a finite number \(nor is ce\), so"),
        (times(NAN, "loss", "ce", "cos"), r"The loss at step 3 is not a finite number \(nor are ce and cos\), so"),
        (no_gradient, r"The gradient at step 3 is not a finite number, so"),
    ],
)
def test_the_step_and_what_was_not_finite_are_named(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[dict[str, Tensor]], None],
    named: str,
) -> None:
    spoil(monkeypatch, {3}, how)
    folder = tmp_path / "student"
    args = distillation(teacher_folder, corpus_folder, folder, max_steps=6, save_steps=2, logging_steps=50)
    with pytest.raises(PotstillError, match=named + r".*checkpoint-2, with a lower .*--on_nan skip"):
        distill(args)
    assert checkpoints(folder) == ["checkpoint-2"]


@pytest.mark.parametrize("how", [times(NAN, "loss", "ce"), times(INF, "loss"), no_gradient], ids=["nan", "inf", "grad"])
def test_a_skipped_step_changes_no_weight_and_is_counted(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[dict[str, Tensor]], None],
) -> None:
    spoil(monkeypatch, {3, 5}, how)
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=6, on_nan="skip")
    weights = Weights()
    trainer = new_trainer(args, [weights])
    moments = {}

    class Moments(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments[state.global_step] = [
                value.clone() for one in trainer.optimizer.state.values() for value in one.values()
            ]

    trainer.add_callback(Moments())
    trainer.train()
    for step, skipped in ((2, False), (3, True), (4, False), (5, True), (6, False)):
        for kept in (weights.after, moments):
            same = all(map(torch.equal, kept[step], kept[step - 1]))
            assert same is skipped, step
    assert trainer.losses.skipped == [3, 5]
    assert all(torch.isfinite(weight).all() for weight in weights.after[6])
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [3, 5]  # nothing to log of these


def test_skips_are_in_the_results_and_survive_an_interruption(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 5}, times(NAN, "loss"))
    sizes: dict[str, Any] = {"max_steps": 6, "save_steps": 4, "on_nan": "skip", "logging_steps": 6}
    whole = distill(distillation(teacher_folder, corpus_folder, tmp_path / "whole", **sizes))
    found = json.loads((whole / "results.json").read_text())
    assert found["skipped_steps"] == [2, 5]
    assert found["loss_spikes"] == []
    logged = [entry for entry in found["log_history"] if "loss" in entry][-1]
    assert math.isfinite(logged["loss"])

    again = tmp_path / "whole" / "checkpoint-4"
    args = distillation(teacher_folder, corpus_folder, tmp_path / "parts", resume_from_checkpoint=str(again), **sizes)
    parts = distill(args)
    assert_same_tensors(tensors(parts), tensors(whole))
    resumed = json.loads((parts / "results.json").read_text())
    assert resumed["skipped_steps"] == [2, 5]
    for name in ("loss", "loss_ce", "loss_cos", "grad_norm"):  # steps 1 to 4 of the mean were before the interruption
        assert [entry for entry in resumed["log_history"] if "loss" in entry][-1][name] == logged[name], name


def test_skips_are_bounded(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 3, 5}, times(NAN, "loss"))
    options = {"max_steps": 6, "save_steps": 4, "on_nan": "skip", "max_skipped_steps": 2}
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **options)
    with pytest.raises(PotstillError, match=r"3 steps had .*: 2, 3, 5\), more than the 2 .*checkpoint-4"):
        distill(args)
    for name, wrong in (("on_nan", "go"), ("max_skipped_steps", -1)):
        with pytest.raises(PotstillError, match=f"--{name}"):
            distillation(teacher_folder, corpus_folder, tmp_path, **{name: wrong})


def test_a_teacher_with_a_weight_that_is_not_finite_is_named(
    make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    teacher = make_teacher(seed=3)
    state = load_file(teacher / "model.safetensors")
    name = "bert.encoder.layer.3.output.dense.weight"
    state[name][0, 0] = NAN
    save_file(state, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PotstillError, match=f"{name} has a weight that is not a finite number"):
        distill(distillation(teacher, corpus_folder, tmp_path / "student"))
    assert not (tmp_path / "student").exists()


def of_a_step(watch: LossWatch, step: int, loss: float) -> None:
    watch.add({"loss": torch.tensor(loss, dtype=torch.float64)})
    watch.end_step(step, None)


def test_spikes_are_those_of_the_definition_and_survive_an_interruption() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    losses = [5 / (1 + step / 100) + rng.gauss(0, 0.05) for step in range(600)]
    for step in (20, 299, 300, 450):
        losses[step] += rng.uniform(8, 12)
    expected = []
    for step, loss in enumerate(losses):
        before = losses[max(0, step - RECENT) : step]
        if len(before) >= FEWEST and loss > statistics.fmean(before) + DEVIATIONS * statistics.pstdev(before):
            expected.append(step)
    assert 299 in expected, f"seed {seed}"

    watch = LossWatch()
    for step, loss in enumerate(losses):
        of_a_step(watch, step, loss)
        if step % 70 == 69:  # as if a checkpoint was written here and the run resumed from it
            assert watch.read(lambda values: values) is None
            state = json.loads(json.dumps(watch.state()))
            watch = LossWatch()
            watch.restore(state)
    assert watch.read(lambda values: values) is None
    assert [spike.step for spike in watch.spikes] == expected, f"seed {seed}"
    assert watch.means()["loss"] == pytest.approx(statistics.fmean(losses))
    assert "step 299: the loss of" in str(watch.spikes[0])


def test_a_spike_is_named_as_it_happens(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, {58}, times(1e3, "loss"))
    sizes = {"max_steps": 60, "per_device_train_batch_size": 1, "logging_steps": 20, "learning_rate": 1e-4}
    folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **sizes))
    assert "step 58: the loss of" in capsys.readouterr().err
    found = json.loads((folder / "results.json").read_text())["loss_spikes"]
    assert [spike["step"] for spike in found] == [58]
    assert found[0]["deviations"] > DEVIATIONS
