"""Training in fixed-point numbers: what is rounded, where nearest stalls and stochastic learns, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import assert_same_tensors, pretraining, send_signal_in_step, tensors
from torch import nn

from potstill import PotstillError, pretrain
from potstill.cli import main
from potstill.precision.fixed_point import FixedPointFormats
from potstill.training.control import TrainingInterrupted
from potstill.training.fixed_point import FixedPointTraining

FORMATS = {"weights": "Q4.10", "activations": "Q6.10", "gradients": "Q-6.22"}


class State:
    """The part of a trainer's state that the rounding reads."""

    global_step = 0


def fixed(values: np.ndarray, integer: int, fraction: int) -> np.ndarray:
    """The nearest fixed-point numbers, in float64."""
    step, end = 2.0**-fraction, 2.0 ** (integer - 1)
    return np.clip(np.floor(values / step + 0.5) * step, -end, end - step)


def test_forward_and_gradients_are_those_of_rounded_numbers() -> None:
    """Two layers by hand, in float64."""
    first, second = nn.Linear(6, 5), nn.Linear(5, 3)
    model = nn.Sequential(first, nn.Tanh(), second)
    formats = FixedPointFormats.read(
        {"weights": "Q2.5", "activations": "Q3.5", "gradients": "Q1.7", "rounding": "nearest"}
    )
    training = FixedPointTraining(model, formats, seed=0)
    training.on_train_begin(None, None, None)  # type: ignore[arg-type]
    x, pull = torch.randn(4, 6), torch.randn(4, 3) / 4
    model(x).backward(pull)
    w1, b1, w2, b2 = (of.detach().double().numpy() for of in model.parameters())
    assert all((of == fixed(of, 2, 5)).all() for of in (w1, b1, w2, b2))
    hidden = fixed(x.double().numpy() @ w1.T + b1, 3, 5)
    assert np.allclose(model(x).detach(), fixed(np.tanh(hidden) @ w2.T + b2, 3, 5), atol=1e-6)
    of_output = fixed(pull.double().numpy(), 1, 7)
    of_hidden = fixed((of_output @ w2) * (1 - np.tanh(hidden) ** 2), 1, 7)
    gradients = [of_hidden.T @ x.double().numpy(), of_hidden.sum(0), of_output.T @ np.tanh(hidden), of_output.sum(0)]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert np.allclose(parameter.grad, gradient, atol=1e-6)
    training.on_pre_optimizer_step(None, State, None)  # type: ignore[arg-type]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert np.abs(parameter.grad.double().numpy() - fixed(gradient, 1, 7)).max() < 1e-6
    shares = training.shares()
    clipped = sum((np.abs(of) > 1 - 2.0**-8).sum() for of in (pull.double().numpy(), *gradients))
    values = 4 * 3 + 4 * 5 + sum(of.size for of in gradients)
    assert shares["saturated_gradients"] == pytest.approx(clipped / values, abs=1.5 / values)
    with torch.no_grad():  # an evaluation counts nothing
        model(x)
    assert training.shares() == {}


def test_the_weights_lie_on_the_grid_and_a_resumed_run_is_the_same(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def options(name: str, **more: Any) -> Any:
        return pretraining(corpus_folder, tmp_path / name, fixed_point=FORMATS, num_hidden_layers=1, **more)

    pretrain(options("whole", max_steps=6))
    assert "out of range: weights 0.00%" in capsys.readouterr().err
    for name, weight in tensors(tmp_path / "whole").items():
        assert torch.equal(weight * 2**10, (weight * 2**10).round()), name
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["fixed_point"]["weights"] == "Q4.10"
    assert set(results["fixed_point"]["saturated"]) == {"weights", "activations", "gradients"}
    logged = [entry for entry in results["log_history"] if "loss" in entry]
    assert all(entry["saturated_gradients"] <= 1 for entry in logged)
    assert logged[-1]["loss"] < logged[0]["loss"]
    recipe = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    assert recipe["fixed_point"] == FORMATS | {"rounding": "stochastic"}

    send_signal_in_step(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted):
        pretrain(options("resumed", max_steps=6))
    monkeypatch.undo()
    pretrain(options("resumed", max_steps=6, resume_from_checkpoint="true"))
    assert_same_tensors(tensors(tmp_path / "resumed"), tensors(tmp_path / "whole"))


def test_stochastic_rounding_learns_where_nearest_stalls() -> None:
    """With steps of the optimiser below half a step of the grid (section 5 of the paper): a linear map is learned."""

    def losses(rounding: str) -> list[float]:
        torch.manual_seed(0)
        target, model, state = torch.randn(8, 4), nn.Linear(8, 4), State()
        formats = FixedPointFormats.read({"weights": "Q4.6", "rounding": rounding})
        training = FixedPointTraining(model, formats, seed=3)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        training.on_train_begin(None, None, None)  # type: ignore[arg-type]
        found = []
        for state.global_step in range(600):
            x = torch.randn(32, 8)
            loss = (model(x) - x @ target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            training.on_optimizer_step(None, state, None)  # type: ignore[arg-type]
            found.append(loss.item())
        return found

    nearest, stochastic = losses("nearest"), losses("stochastic")
    assert np.mean(stochastic[-50:]) < 0.02 * np.mean(stochastic[:5])
    assert np.mean(nearest[-50:]) > 20 * np.mean(stochastic[-50:])


def test_a_format_that_cannot_hold_the_weights_is_refused(
    corpus_folder: Path, tmp_path: Path, signals_restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", f"--corpus={corpus_folder}", f"--output_dir={tmp_path / 'out'}", "--use_cpu"]
    arguments += ["--num_hidden_layers=1", "--hidden_size=32", "--num_attention_heads=2"]
    assert main([*arguments, "--fixed_point", "{weights: Q-3.12}"]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Q-3.12 holds weights up to 0.0622559, but" in message
    assert "more bits before the point" in message
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("option", ["bf16", "torch_compile", "cuda_graphs"])
def test_what_does_not_go_together_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=f"{option} is True: it does not go with --fixed_point"):
        pretraining(tmp_path, tmp_path, fixed_point="{weights: Q4.12}", **{option: True})
