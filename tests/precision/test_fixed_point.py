"""Fixed-point numbers: both roundings against exact arithmetic, and what cannot be such numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.precision.fixed_point import FixedPoint, FixedPointFormats, rounded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FORMATS = [FixedPoint(4, 12), FixedPoint(8, 8), FixedPoint(2, 6), FixedPoint(-3, 12), FixedPoint(12, -4)]


def values(numbers: FixedPoint) -> Tensor:
    """Values between the numbers, halfway between two, on one, and out of range on both sides."""
    low, high = numbers.limits
    steps = torch.empty(3000).uniform_(1.3 * low, 1.3 * high)
    steps[:500] = torch.randint(low, high, (500,)) + 0.5
    steps[500:900] = torch.randint(low, high, (400,)).float()
    steps[900:1000] = torch.randn(100) * 1e-4
    return steps * numbers.step


def exact_nearest(x: float, numbers: FixedPoint) -> Fraction:
    low, high = numbers.limits
    step = Fraction(2) ** -numbers.fraction
    return min(max((Fraction(x) / step + Fraction(1, 2)).__floor__(), low), high) * step


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("numbers", FORMATS, ids=str)
def test_nearest(numbers: FixedPoint, device: str) -> None:
    x = values(numbers)
    held, saturated = rounded(x.to(device), numbers, "nearest")
    expected = [exact_nearest(value, numbers) for value in x.tolist()]
    assert held.tolist() == [float(value) for value in expected]
    step = Fraction(2) ** -numbers.fraction
    beyond = [abs(Fraction(value) - near) > step / 2 for value, near in zip(x.tolist(), expected, strict=True)]
    assert saturated.item() == sum(beyond) > 0


@pytest.mark.parametrize("device", DEVICES)
def test_stochastic_rounding_is_unbiased(device: str) -> None:
    """The mean over many roundings is the value itself, of each value, and near the ends of the range too."""
    numbers, times = FixedPoint(4, 12), 4000
    x = torch.tensor([0.3, -0.3, 0.5, 1e-3, -1e-3, 0.999, 0.0, 7.0 - 1e-5, 32767.0 - 0.25, -32767.3]) * numbers.step
    x[-3] = 7.0 - 0.3 * numbers.step
    held, saturated = rounded(x.repeat(times, 1).to(device), numbers, "stochastic", seed=int(torch.randint(2**31, ())))
    mean = held.double().cpu().mean(0) / numbers.step
    exact = x.double() / numbers.step
    share = exact - exact.floor()
    deviation = (share * (1 - share) / times).sqrt()
    assert ((mean - exact).abs() <= 5 * deviation + 1e-6).all(), (mean, exact)
    assert saturated.item() == 0
    steps = held.cpu() / numbers.step
    assert torch.equal(steps, steps.round())
    assert ((steps - x / numbers.step).abs() < 1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_stochastic_rounding_saturates_and_depends_on_the_seed_alone(device: str) -> None:
    numbers = FixedPoint(3, 5)
    x = values(numbers).to(device)
    first, again, other = (rounded(x, numbers, "stochastic", seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert 0.2 < (first != other).float().mean() < 0.8
    assert first.max().item() == numbers.highest
    assert first.min().item() == -numbers.highest - numbers.step


@pytest.mark.parametrize("device", DEVICES)
def test_values_that_are_no_numbers_are_not_hidden(device: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf")], device=device)
    held, saturated = rounded(x, FixedPoint(2, 6), "nearest")
    assert held[0].isnan()
    assert held[1:].tolist() == [2 - 2**-6, -2]
    assert saturated.item() == 2


_IN_INTERPRETER = """
import sys, torch
sys.path[:0] = sys.argv[1:]
from potstill.precision.fixed_point import FixedPoint, rounded
from potstill.precision.triton_fixed_point import triton_rounded
for numbers in (FixedPoint(4, 12), FixedPoint(2, 6), FixedPoint(-3, 12)):
    x = torch.randn(1500) * numbers.highest
    x[::7] = (torch.randint(-20, 20, x[::7].shape) + 0.5) * numbers.step
    x[3] = float("nan")
    for mine, theirs in zip(rounded(x, numbers, "nearest"), triton_rounded(x, numbers, "nearest")):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
numbers = FixedPoint(4, 12)
x = torch.tensor([0.3, -0.3, 0.01, 0.99]) * numbers.step
held, saturated = triton_rounded(x.repeat(4096, 1), numbers, "stochastic", 7)
error = (held.mean(0) - x).abs() / numbers.step
assert (error < 5 * 0.5 / 64).all() and saturated == 0, error
again, other = (triton_rounded(x.repeat(64, 1), numbers, "stochastic", seed)[0] for seed in (7, 8))
assert torch.equal(again, held[:64]) and not torch.equal(other, again)
print("equal")
"""


def test_the_kernel_does_the_same_in_the_interpreter() -> None:
    """Needs Triton's package, but no GPU."""
    found = subprocess.run(
        [sys.executable, "-c", "import triton"], capture_output=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    if found.returncode:
        pytest.skip("needs the package triton")
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", _IN_INTERPRETER, source],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.parametrize("text", ["4.12", 4.12, "Q4", "Q4.40", "Q0.1", "Q1.100", None, "<4, 12>"])
def test_what_is_no_format(text: object) -> None:
    with pytest.raises(PotstillError, match=r"Q4\.12"):
        FixedPoint.parse(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "must map"),
        ({}, "must map"),
        ({"rounding": "nearest"}, "must map"),
        ({"weights": "Q4.12", "biases": "Q4.12"}, "no key 'biases'"),
        ({"weights": 6.1}, "weights: 6.1 is no format"),
        ({"weights": "Q4.12", "rounding": "up"}, "rounding is 'up'"),
    ],
)
def test_what_is_no_mapping_of_formats(values: object, message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        FixedPointFormats.read(values)


def test_a_mapping_is_read_as_it_is_written() -> None:
    record = {"weights": "Q4.12", "gradients": "Q-8.24", "rounding": "nearest"}
    read = FixedPointFormats.read(record)
    assert read.record == record
    assert read.gradients == FixedPoint(-8, 24)
    assert read.gradients.highest == 2.0**-9 - 2.0**-24
