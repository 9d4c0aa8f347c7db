"""Rounding of rows, and of their GELU, to an 8-bit type, as Triton kernels: one read and one write of each value."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from potstill.student.fp8 import SMALLEST


@triton.jit
def _quantise_rows_kernel(
    values, rows, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LIMIT: tl.constexpr, SMALLEST: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    found = tl.load(values + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(found), 0), SMALLEST)
    tl.store(scales + row, largest / LIMIT)
    tl.store(rows + row * WIDTH + columns, (found * (LIMIT / largest)).to(rows.dtype.element_ty), mask=inside)


@torch.library.custom_op("potstill::quantise_rows", mutates_args=())
def quantise_rows_op(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Do what `quantise_rows` of `fp8.py` does, for contiguous (N, K) values on a GPU."""
    count, width = values.shape
    rows = torch.empty_like(values, dtype=dtype)
    scales = values.new_empty((count, 1), dtype=torch.float32)
    block = triton.next_power_of_2(width)
    limit = torch.finfo(dtype).max
    _quantise_rows_kernel[(count,)](
        values, rows, scales, WIDTH=width, BLOCK=block, LIMIT=limit, SMALLEST=SMALLEST, num_warps=max(1, block // 512)
    )
    return rows, scales


@quantise_rows_op.register_fake
def _(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values, dtype=dtype), values.new_empty((len(values), 1), dtype=torch.float32)


@triton.jit
def _gelu(values, columns, WIDTH: tl.constexpr):
    inside = columns < WIDTH
    x = tl.load(values + columns, mask=inside, other=0.0).to(tl.float32)
    # x · sigmoid(2u), where u is the argument of tanh. The constant is 2 · sqrt(2 / pi) · log2(e).
    power = -2.3022081986 * (x + 0.044715 * x * x * x)
    return (x / (1.0 + tl.exp2(power))).to(values.dtype.element_ty).to(tl.float32)  # as it would be stored


@triton.jit
def _quantise_gelu_rows_kernel(
    values,
    rows,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    THREE: tl.constexpr,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    values += row * WIDTH
    rows += row * WIDTH
    columns = tl.arange(0, BLOCK)
    first = _gelu(values, columns, WIDTH)
    largest = tl.max(tl.abs(first), 0)
    if THREE:  # three times a power of two, so that no thread is left without a value
        second = _gelu(values, BLOCK + columns, WIDTH)
        third = _gelu(values, 2 * BLOCK + columns, WIDTH)
        largest = tl.maximum(largest, tl.max(tl.maximum(tl.abs(second), tl.abs(third)), 0))
    largest = tl.maximum(largest, SMALLEST)
    factor = LIMIT / largest
    tl.store(scales + row, largest / LIMIT)
    kind: tl.constexpr = rows.dtype.element_ty
    tl.store(rows + columns, (first * factor).to(kind), mask=columns < WIDTH)
    if THREE:
        tl.store(rows + BLOCK + columns, (second * factor).to(kind))
        tl.store(rows + 2 * BLOCK + columns, (third * factor).to(kind))


def gelu_blocks(width: int) -> dict[str, int]:
    """Return how many values of a row the kernel for GELU processes at once, and whether in three such parts."""
    third, rest = divmod(width, 3)
    three = rest == 0 and third == triton.next_power_of_2(third)
    return {"BLOCK": third if three else triton.next_power_of_2(width), "THREE": three}


@torch.library.custom_op("potstill::quantise_gelu_rows", mutates_args=())
def quantise_gelu_rows_op(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Do what `quantise_gelu_rows` of `fp8.py` does, for contiguous (N, K) values on a GPU."""
    count, width = values.shape
    rows = torch.empty_like(values, dtype=dtype)
    scales = values.new_empty((count, 1), dtype=torch.float32)
    blocks = gelu_blocks(width)
    _quantise_gelu_rows_kernel[(count,)](
        values,
        rows,
        scales,
        WIDTH=width,
        **blocks,
        LIMIT=torch.finfo(dtype).max,
        SMALLEST=SMALLEST,
        num_warps=min(8, max(1, blocks["BLOCK"] // 256)),
    )
    return rows, scales


@quantise_gelu_rows_op.register_fake
def _(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values, dtype=dtype), values.new_empty((len(values), 1), dtype=torch.float32)
