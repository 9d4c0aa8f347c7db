"""Linear layers with 8-bit operands against float64: what is rounded, by how much, and what is exact."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from potstill import build_student
from potstill.errors import PotstillError
from potstill.objective import DistillationObjective
from potstill.student import family_of
from potstill.student.fp8 import (
    E4M3,
    E5M2,
    Fp8,
    Fp8Linear,
    FrozenFp8Linear,
    FrozenFp8LinearGelu,
    load_kernel,
    quantise_gelu_rows,
    quantise_rows,
    use_fp8,
)
from potstill.training.step import DistillationStep

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


def rounded_away(rows: Tensor, weight: Tensor) -> Tensor:
    """The most that a product can lose to entries that are tiny beside the largest of their row."""
    return rows.abs().amax(-1, keepdim=True) * weight.amax() * len(weight) * 2.0**-14


def new_linear(outputs: int = 48, inputs: int = 64) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    linear.weight.data *= torch.logspace(-3, 3, outputs)[:, None]  # each output has its own scale
    return linear


@pytest.mark.parametrize(("dtype", "mantissa"), [(E4M3, 3), (E5M2, 2)])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [64, 3072])
def test_each_row_is_rounded_on_its_own_scale(device: str, width: int, dtype: torch.dtype, mantissa: int) -> None:
    values = torch.randn(20, width, dtype=torch.float64) * torch.logspace(-12, 12, 20, dtype=torch.float64)[:, None]
    values[3] = 0
    if device == "cuda":
        load_kernel()
    rows, scales = quantise_rows(values.float().to(device), dtype)
    assert rows.dtype == dtype
    assert scales.shape == (20, 1)
    found = (rows.float() * scales).double().cpu()
    assert torch.isfinite(found).all()
    assert not found[3].any()
    largest = values.abs().amax(-1, keepdim=True)
    tiny = largest * torch.finfo(dtype).smallest_normal / torch.finfo(dtype).max
    assert ((found - values).abs() <= values.abs() * 2.0 ** -(mantissa + 1) * 1.001 + tiny).all()


def check_gelu_rows(rows: Tensor, scales: Tensor, values: Tensor, dtype: torch.dtype) -> None:
    """Check rounded rows of GELU against float64. They lose the rounding of 16 bits and that of the 8-bit type."""
    assert rows.dtype == dtype
    assert scales.shape == (len(values), 1)
    x = values.double().cpu()
    expected = x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    largest = expected.abs().amax(-1, keepdim=True)
    error = ((rows.float() * scales).double().cpu() - expected).abs()
    step = 2.0**-4 if dtype == E4M3 else 2.0**-3
    tiny = largest * torch.finfo(dtype).smallest_normal / torch.finfo(dtype).max
    cancelled = x.abs() * 2.0**-22  # 1 + tanh in float32, where tanh is almost -1
    assert (error <= expected.abs() * (step + 2.0**-8) * 1.01 + tiny + cancelled + 1e-30).all()
    assert (scales.double().cpu() * torch.finfo(dtype).max - largest).abs().max() <= largest.max() * 2.0**-8


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [64, 768, 1000, 3072])
def test_gelu_is_rounded_in_rows(device: str, width: int, dtype: torch.dtype) -> None:
    values = (torch.randn(20, width) * torch.logspace(-3, 2, 20)[:, None]).bfloat16()
    values[3] = 0
    if device == "cuda":
        load_kernel()
    found = quantise_gelu_rows(values.to(device), dtype)
    check_gelu_rows(*found, values, dtype)


# The interpreter loses the carry of its casts to 8-bit types, and truncates to bfloat16. So all is float32 here. The
# test above checks the casts on a GPU.
INTERPRETED = """
import torch, triton
from potstill.student.triton_fp8 import gelu_blocks, _quantise_gelu_rows_kernel as kernel
for width in (64, 1000, 3072):
    x = torch.randn(5, width) * torch.logspace(-3, 2, 5)[:, None]
    x[2] = 0
    rows, scales = torch.empty_like(x), torch.empty(5, 1)
    kernel[(5,)](x, rows, scales, WIDTH=width, **gelu_blocks(width), LIMIT=448.0, SMALLEST=1e-30)
    x = x.double()
    expected = x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    largest = expected.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(scales.double(), largest / 448, rtol=1e-5, atol=0)
    torch.testing.assert_close(rows.double(), expected / largest * 448, rtol=1e-5, atol=1e-9)
"""


@pytest.mark.slow
def test_the_kernel_of_gelu_is_right_in_the_interpreter_of_triton() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True, timeout=120)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_frozen_layer_hands_its_activation_on_in_8_bits(family: str, compiled: bool) -> None:
    _, model = new_pair()
    model = model if family == "bert" else build_student(model).eval()
    layers, names = family_of(model).layers(model), family_of(model).widths.neurons_in  # type: ignore[union-attr]
    family_of(model).fuse_gelu(model)
    plain = copy.deepcopy(layers)
    use_fp8(plain, Fp8(), frozen=True)
    use_fp8(layers, Fp8(), frozen=True, after_gelu=names)
    assert sum(isinstance(module, FrozenFp8LinearGelu) for module in layers.modules()) == len(layers)
    assert sum(isinstance(module, FrozenFp8Linear) for module in layers.modules()) == 6 * len(layers)
    hidden = torch.randn(2, 16, 32)
    with torch.no_grad():
        run = torch.compile(layers[0], backend="aot_eager", fullgraph=True) if compiled else layers[0]
        torch.testing.assert_close(run(hidden), plain[0](hidden))


@pytest.mark.parametrize(("gradients", "bound"), [("e4m3", 0.13), ("e5m2", 0.2), ("off", 1e-6)])
def test_a_layer_in_training_is_off_by_the_rounding_of_its_operands(gradients: Any, bound: float) -> None:
    linear = new_linear()
    hidden = torch.randn(3, 5, 64) * torch.logspace(-4, 4, 15).reshape(3, 5, 1)
    grad = torch.randn(3, 5, 48) * torch.logspace(-9, -3, 15).reshape(3, 5, 1)
    layer = Fp8Linear(linear, gradients)
    assert layer.weight is linear.weight
    given = hidden.clone().requires_grad_()
    found = layer(given)
    found.backward(grad)
    x, w, g = (tensor.detach().double() for tensor in (hidden, linear.weight, grad))
    expected = x @ w.T + linear.bias.detach().double()
    error = (found.detach() - expected).abs()
    assert (error <= (x.abs() @ w.abs().T) * 0.13 + rounded_away(x, w.abs().T)).all()  # (1 + 1/16)² - 1
    assert (error > 0).all()
    assert given.grad is not None
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None
    assert ((given.grad - g @ w).abs() <= (g.abs() @ w.abs()) * bound + rounded_away(g, w.abs())).all()
    assert distance(linear.weight.grad, g.flatten(0, 1).T @ x.flatten(0, 1)) < 1e-6
    assert distance(linear.bias.grad, g.sum((0, 1))) < 1e-6


def test_in_evaluation_a_layer_in_training_is_the_one_that_it_replaced() -> None:
    linear, hidden = new_linear(), torch.randn(4, 64)
    assert torch.equal(Fp8Linear(linear, "e4m3").eval()(hidden), linear(hidden))


@pytest.mark.parametrize("gradients", ["e4m3", "off"])
def test_a_compiled_layer_is_one_graph_that_computes_the_same(gradients: Any) -> None:
    layer, frozen = Fp8Linear(new_linear(), gradients), FrozenFp8Linear(new_linear())
    hidden = torch.randn(2, 5, 64)
    results = []
    for compiled in (False, True):
        run, run_frozen = (
            (torch.compile(one, backend="aot_eager", fullgraph=True) if compiled else one) for one in (layer, frozen)
        )
        layer.zero_grad()
        given = hidden.clone().requires_grad_()
        found = run(given)
        found.square().sum().backward()
        results.append([found, run_frozen(hidden), given.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("gradients", ["e4m3", "e5m2"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_rounds_as_the_emulation_does(gradients: Any, compiled: bool) -> None:
    linear = new_linear(256, 768).bfloat16()
    hidden, grad = torch.randn(512, 768).bfloat16(), (torch.randn(512, 256) * 1e-6).bfloat16()
    results = []
    for device in ("cpu", "cuda"):
        layer: Any = Fp8Linear(copy.deepcopy(linear).to(device), gradients)
        frozen: Any = FrozenFp8Linear(copy.deepcopy(linear).to(device))
        given = hidden.to(device, copy=True).requires_grad_()
        run, run_frozen = layer, frozen
        if compiled and device == "cuda":
            run, run_frozen = torch.compile(layer), torch.compile(frozen)
        found = run(given)
        found.backward(grad.to(device))
        gradients_of = (given.grad, layer.weight.grad, layer.bias.grad)
        # No gradient flows through a frozen layer. For an input that requires one, compiling would trace the backward
        # pass of its product, which has none.
        frozen_found = run_frozen(given.detach())
        results.append([one.detach().double().cpu() for one in (found, frozen_found, *gradients_of)])
    for cpu, cuda in zip(*results, strict=True):
        assert distance(cuda, cpu) < 1e-2


def new_pair() -> tuple[Any, Any]:
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = BertForMaskedLM(BertConfig(vocab_size=60, num_hidden_layers=4, **shape, **no_dropout)).eval()
    return build_student(teacher), teacher


def test_a_whole_step_is_close_to_the_one_without_and_the_student_keeps_its_names() -> None:
    torch.manual_seed(0)
    student, teacher = new_pair()
    names = set(student.state_dict())
    ids = torch.randint(60, (2, 16))
    positions, labels = torch.tensor([[2, 5], [1, 9]]), torch.randint(60, (2, 2))
    losses, gradients = [], []
    for fp8 in (None, Fp8()):
        step = DistillationStep(copy.deepcopy(student).train(), teacher, DistillationObjective(), fp8=fp8)
        loss = step(ids, positions, labels)["loss"]
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([one.grad.flatten() for one in step.student.parameters()]))
        assert set(step.student.state_dict()) == names
        replaced = [type(module) for module in step.student.modules() if isinstance(module, Fp8Linear)]
        assert len(replaced) == (0 if fp8 is None else 12)
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert 1e-4 < distance(gradients[1], gradients[0].double()) < 0.2
    assert not any(isinstance(module, FrozenFp8Linear) for module in teacher.modules())  # a copy of it runs


def test_layers_at_the_ends_stay_and_what_cannot_be_is_refused() -> None:
    _, teacher = new_pair()
    layers = copy.deepcopy(teacher).bert.encoder.layer
    use_fp8(layers, Fp8(ends=1), frozen=True)
    kinds = [sum(isinstance(module, FrozenFp8Linear) for module in layer.modules()) for layer in layers]
    assert kinds == [0, 6, 6, 0]
    with pytest.raises(PotstillError, match="no linear layer"):
        use_fp8(teacher.bert.encoder.layer, Fp8(ends=2), frozen=True)
    with pytest.raises(PotstillError, match="no linear layer"):
        use_fp8([nn.Sequential(nn.Linear(24, 32))], Fp8(), frozen=False)
    for value, message in (
        ("all", "models is 'all'"),
        ({"gradient": "e5m2"}, "no option 'gradient'"),
        ({"gradients": "e3m4"}, "gradients is 'e3m4'"),
        ({"ends": -1}, "ends is -1"),
    ):
        with pytest.raises(PotstillError, match=message):
            Fp8.of(value)
    assert Fp8.of({"models": "teacher"}) == Fp8("teacher")
    assert Fp8.of(None) is None
