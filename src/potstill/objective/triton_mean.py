"""The mean of several teachers' probabilities in two Triton kernels, which read all logits twice and write once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # columns that a program loads at once
NUM_WARPS = 8


@triton.jit
def _normalise_kernel(
    logits,
    offsets,
    largest,
    temperature,
    log_weight,
    VOCAB_SIZE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For a row of one teacher, compute an offset, log2(weight) − log2 Σ 2^z, and the largest value of offset + z."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * ROW_STRIDE
    columns = tl.arange(0, BLOCK)
    lowest = -1.0e30  # finite, so that the difference of two such is no NaN
    to_base_2 = 1.4426950408889634 / temperature
    top = tl.full([BLOCK], lowest, tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        inside = start + columns < VOCAB_SIZE
        z = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
        z = tl.where(inside, z * to_base_2, lowest)
        new_top = tl.maximum(top, z)
        sums = sums * tl.exp2(top - new_top) + tl.where(inside, tl.exp2(z - new_top), 0.0)
        top = new_top
    row_top = tl.max(top, 0)
    normaliser = row_top + tl.log2(tl.sum(sums * tl.exp2(top - row_top), 0))
    tl.store(offsets + row, log_weight - normaliser)
    tl.store(largest + row, log_weight - normaliser + row_top)


@triton.jit
def _mix_kernel(
    logits,
    offsets,
    largest,
    rows,
    temperature,
    teacher_stride,
    VOCAB_SIZE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    TEACHERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For some columns of a row, write the logarithm of the mean over the logits of the first teacher."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits += row * ROW_STRIDE + columns
    inside = columns < VOCAB_SIZE
    to_base_2 = 1.4426950408889634 / temperature
    shift = tl.load(largest + row)
    for teacher in tl.static_range(1, TEACHERS):
        shift = tl.maximum(shift, tl.load(largest + teacher * rows + row))
    top = tl.full([BLOCK], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for teacher in tl.static_range(TEACHERS):
        z = tl.load(logits + teacher * teacher_stride, mask=inside, other=0.0).to(tl.float32)
        z = z * to_base_2 + (tl.load(offsets + teacher * rows + row) - shift)
        new_top = tl.maximum(top, z)
        total = total * tl.exp2(top - new_top) + tl.exp2(z - new_top)
        top = new_top
    tl.store(logits, (top + tl.log2(total)) / to_base_2, mask=inside)


def triton_mean_of_probabilities_(
    logits: Tensor, weights: Sequence[float], temperature: float, vocab_size: int
) -> None:
    """Do the same as `mean_of_probabilities_`. The largest logit of a row lies between 0 and T · ln(teachers)."""
    teachers, rows, width = logits.shape
    offsets, largest = torch.empty((2, teachers, rows), dtype=torch.float32, device=logits.device)
    for number, weight in enumerate(weights):
        _normalise_kernel[(rows,)](
            logits[number],
            offsets[number],
            largest[number],
            temperature,
            math.log2(weight),
            VOCAB_SIZE=vocab_size,
            ROW_STRIDE=width,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    _mix_kernel[(rows, triton.cdiv(vocab_size, BLOCK))](
        logits,
        offsets,
        largest,
        rows,
        temperature,
        rows * width,
        VOCAB_SIZE=vocab_size,
        ROW_STRIDE=width,
        TEACHERS=teachers,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )
