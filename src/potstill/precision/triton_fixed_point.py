"""The rounding to fixed-point numbers in one Triton kernel. Its random numbers are Philox's (Salmon et al. 2011)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from potstill.precision.fixed_point import FixedPoint, Rounding

BLOCK = 1024


@triton.jit(do_not_specialize=["seed"])
def _round_kernel(
    x, held, saturated, size, seed, per_step, step, lowest, highest, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr
):
    """Round a block of values, and add the number of those out of range to `saturated`."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    in_steps = tl.load(x + places, mask=inside, other=0.0) * per_step
    below = tl.floor(in_steps)
    distance = in_steps - below
    if STOCHASTIC:
        nearest = tl.where(tl.rand(seed, places) < distance, below + 1.0, below)
    else:
        nearest = tl.where(distance >= 0.5, below + 1.0, below)
    over, under = nearest > highest, nearest < lowest
    nearest = tl.where(over, highest, tl.where(under, lowest, nearest))  # NaN is neither, and stays
    tl.store(held + places, nearest * step, mask=inside)
    tl.atomic_add(saturated, tl.sum((over | under).to(tl.int64), 0))


def triton_rounded(x: Tensor, numbers: FixedPoint, rounding: Rounding, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Do the same as `rounded`, with other random numbers."""
    x = x.detach().contiguous()
    held = torch.empty_like(x)
    saturated = torch.zeros((), dtype=torch.int64, device=x.device)
    lowest, highest = numbers.limits
    _round_kernel[(triton.cdiv(x.numel(), BLOCK),)](
        x,
        held,
        saturated,
        x.numel(),
        seed,
        2.0**numbers.fraction,
        numbers.step,
        float(lowest),
        float(highest),
        STOCHASTIC=rounding == "stochastic",
        BLOCK=BLOCK,
    )
    return held, saturated
