"""Training for int8: numbers are rounded as in an export, and gradients pass as if nothing were rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from potstill.errors import PotstillError
from potstill.precision.integers import nearest_activations, nearest_weights
from potstill.precision.simulated import SimulatedEmbedding, SimulatedLinear, simulate


def naive_steps(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """What ONNX says of DynamicQuantizeLinear, in float64."""
    scale = (max(high, 0) - min(low, 0)) / 255
    zero = np.clip(np.rint(-min(low, 0) / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
def test_activations_take_256_steps(shift: float) -> None:
    x = torch.randn(4, 7, 5) + shift
    numbers = x.double().numpy()
    expected = naive_steps(numbers, numbers.min(), numbers.max())
    found = nearest_activations(x, x).double().numpy()
    assert (np.abs(found - expected) < 1e-5).mean() > 0.98  # a number half-way between two steps may go either way
    first = x[:, :1]
    expected = naive_steps(first.double().numpy(), first.min().item(), first.max().item())
    assert (np.abs(nearest_activations(x, first)[:, :1].numpy() - expected) < 1e-5).mean() > 0.98
    assert not nearest_activations(torch.zeros(3), torch.zeros(3)).any()


def test_weights_have_a_scale_for_each_output() -> None:
    matrix = torch.randn(6, 40) * torch.logspace(-3, 3, 6)[:, None]
    matrix[2] = 0
    scale = np.maximum(np.abs(matrix.double().numpy()).max(axis=1, keepdims=True) / 64, 1e-30)
    expected = np.rint(matrix.double().numpy() / scale) * scale
    found = nearest_weights(matrix).double().numpy()
    assert (np.abs(found - expected) <= 1e-5 * np.abs(expected) + 1e-12).mean() > 0.98
    assert not found[2].any()


@pytest.mark.parametrize("shape", [(3, 5, 32), (4, 32)])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_is_that_of_the_rounded_matrix_product(bits: int, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(32, 8)
    module = SimulatedLinear(linear, bits, every_token=False, first_token=False)
    assert module.weight is linear.weight
    x = torch.randn(shape, requires_grad=True)
    out = module(x)
    pull = torch.randn_like(out)
    out.backward(pull)
    feed_forward = len(shape) == 3
    level = x.detach().double().abs().amax(-1, keepdim=True) if feed_forward else 1.0
    scaled = (x.detach().double() / level).numpy()
    rounded = torch.from_numpy(naive_steps(scaled, scaled.min(), scaled.max())) * level
    weight = nearest_weights(linear.weight, bits if feed_forward else 8).double()
    torch.testing.assert_close(out.double(), rounded @ weight.T + linear.bias.double(), atol=0.1, rtol=0)
    flat = pull.double().flatten(0, -2)
    torch.testing.assert_close(x.grad.double(), pull.double() @ weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(linear.weight.grad.double(), flat.T @ rounded.flatten(0, -2), atol=0.2, rtol=1e-3)
    torch.testing.assert_close(linear.bias.grad.double(), flat.sum(0), atol=1e-5, rtol=1e-4)


def test_rows_of_a_table_have_a_scale_each_and_padding_gets_no_gradient() -> None:
    table = nn.Embedding(20, 30, padding_idx=0)
    module = SimulatedEmbedding(table, 8)
    ids = torch.tensor([[3, 0, 3]])
    rows = module(ids)
    scale = table.weight[3].abs().max() / 127
    torch.testing.assert_close(rows[0, 0], (table.weight[3] / scale).round() * scale)
    rows.sum().backward()
    assert module.weight is table.weight
    assert torch.equal(table.weight.grad[3], torch.full((30,), 2.0))
    assert not table.weight.grad[0].any()


def test_what_is_not_simulated_is_refused() -> None:
    model = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(PotstillError, match="gpt2"):
        simulate(model, "int8", every_token=False)
