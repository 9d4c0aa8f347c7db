"""Fixed-point numbers and their two roundings (Gupta et al. 2015, arXiv 1502.02551, section 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.errors import PotstillError

Rounding = Literal["nearest", "stochastic"]
ROUNDINGS = ("nearest", "stochastic")

LONGEST = 24
"""Most bits of a number: float32 holds every number of so many bits exactly."""

_WRITTEN = re.compile(r"[Qq](-?\d+)\.(-?\d+)")


@dataclass(frozen=True)
class FixedPoint:
    """The numbers ⟨IL, FL⟩: whole multiples of 2^−FL from −2^(IL−1) to 2^(IL−1) − 2^−FL.

    Attributes:
        integer: IL, the bits before the point, with the sign. It may be negative: Q-8.24 holds numbers below 2^−9.
        fraction: FL, the bits after the point.

    Raises:
        PotstillError: the number has fewer than 2 bits or more than `LONGEST`, or is out of the range of float32.
    """

    integer: int
    fraction: int

    def __post_init__(self) -> None:
        if not 2 <= self.integer + self.fraction <= LONGEST or not -60 <= self.fraction <= 60:
            raise PotstillError(
                f"The fixed-point numbers {self} have {self.integer + self.fraction} bits: the two lengths must add up "
                f"to 2 to {LONGEST} bits, as in Q4.12, and the second must lie between -60 and 60."
            )

    @classmethod
    def parse(cls, text: Any) -> FixedPoint:
        """Read ``Q4.12``, which has 4 bits before the point, with the sign, and 12 after it.

        Raises:
            PotstillError: the text is something else, or no such numbers are possible.
        """
        found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise PotstillError(
                f"{text!r} is no format of fixed-point numbers: write Q, the bits before the point with the sign, a "
                "point, and the bits after it, as in Q4.12."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"Q{self.integer}.{self.fraction}"

    @property
    def step(self) -> float:
        """The distance of two numbers."""
        return 2.0**-self.fraction

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest number, in steps."""
        half: int = 2 ** (self.integer + self.fraction - 1)
        return -half, half - 1

    @property
    def highest(self) -> float:
        """The highest number."""
        return self.limits[1] * self.step


@dataclass(frozen=True)
class FixedPointFormats:
    """What is held in fixed point in a training, as `--fixed_point` says.

    Attributes:
        weights: of all parameters of the model; None for float32.
        activations: of what each module with parameters returns.
        gradients: of the loss with respect to activations and weights.
        rounding: `stochastic` or `nearest`.
    """

    weights: FixedPoint | None = None
    activations: FixedPoint | None = None
    gradients: FixedPoint | None = None
    rounding: Rounding = "stochastic"

    @classmethod
    def read(cls, values: Any) -> FixedPointFormats:
        """Read the mapping of `--fixed_point`.

        Raises:
            PotstillError: it is no mapping, a key or a value is not valid, or no format is given.
        """
        kinds = ("weights", "activations", "gradients")
        example = "{weights: Q4.12, activations: Q6.10, gradients: Q-8.24, rounding: stochastic}"
        if not isinstance(values, Mapping) or not set(values) & set(kinds):
            raise PotstillError(
                f"--fixed_point is {values!r}: it must map weights, activations or gradients to formats, as in "
                f"{example}."
            )
        for key in values:
            if key not in (*kinds, "rounding"):
                raise PotstillError(f"--fixed_point has no key {key!r}: choose from {', '.join(kinds)} and rounding.")
        rounding = values.get("rounding", cls.rounding)
        if rounding not in ROUNDINGS:
            raise PotstillError(f"--fixed_point: rounding is {rounding!r}, but must be {' or '.join(ROUNDINGS)}.")
        formats = {}
        for kind in kinds:
            if values.get(kind) is not None:
                try:
                    formats[kind] = FixedPoint.parse(values[kind])
                except PotstillError as error:
                    raise PotstillError(f"--fixed_point: {kind}: {error}") from error
        return cls(**formats, rounding=rounding)

    @property
    def record(self) -> dict[str, str]:
        """The mapping that `read` reads."""
        formats = {kind: getattr(self, kind) for kind in ("weights", "activations", "gradients")}
        return {kind: str(of) for kind, of in formats.items() if of is not None} | {"rounding": self.rounding}


def rounded(x: Tensor, numbers: FixedPoint, rounding: Rounding, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the fixed-point numbers for a tensor, and how many of its values are out of their range.

    ``nearest`` takes the nearest number, and the upper one of two that are as near. ``stochastic`` takes the number
    below with the probability 1 − d, or else the number above, where d is the distance from the number below in steps.
    So its expectation is the value itself (equation 3.1 of the paper). A value out of range becomes the nearest end.

    Args:
        x: float32, any shape; NaN stays NaN.
        numbers: their format.
        rounding: how values between two numbers are rounded.
        seed: decides the random numbers of the stochastic rounding, 0 ≤ seed < 2³¹.

    Returns:
        float32 numbers of the same shape, and the count as an int64 scalar on the same device.
    """
    if x.is_cuda and _has_triton():
        from potstill.precision.triton_fixed_point import triton_rounded

        return triton_rounded(x, numbers, rounding, seed)
    lowest, highest = numbers.limits
    in_steps = x.detach() * 2.0**numbers.fraction
    below = in_steps.floor()
    distance = in_steps - below
    if rounding == "stochastic":
        generator = torch.Generator(x.device).manual_seed(seed)
        up = torch.rand(x.shape, generator=generator, device=x.device) < distance
    else:
        up = distance >= 0.5
    nearest = below + up
    held = nearest.clamp(lowest, highest)
    return held * numbers.step, ((held != nearest) & ~nearest.isnan()).sum()


def _has_triton() -> bool:
    from potstill.objective.chunks import softmax, softmax_losses_

    return softmax("cuda") is not softmax_losses_  # it warns if something is missing
