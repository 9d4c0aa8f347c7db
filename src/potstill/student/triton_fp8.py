"""Rounding of wide rows to an 8-bit type, as one Triton kernel: one read of the values and one write of the result."""

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
