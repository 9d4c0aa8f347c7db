"""What an int8 export does to numbers. The exporter and the simulation in training read the same rules here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.precision.four_bits import in_blocks

LARGE = 100_000
"""Smaller tables, by count of numbers, stay in float32: they are not worth quantising."""

NEVER_FAR_BELOW_ZERO = 0.17
"""GELU and ReLU are never below −0.17. Divided by its largest number, or by 0.17 if that is larger, a token lies
between −1 and 1, so its absolute values need not be computed."""

SMALLEST = 1e-6
"""A token is divided by its largest absolute value, or by this if that is smaller."""

SEVEN_BITS, EIGHT_BITS = 64, 127
"""Largest whole number of a weight of a matrix, and of a table of embeddings."""


def is_feed_forward(shape: Sequence[int]) -> bool:
    """Return whether a matrix widens or narrows the hidden states. The projection to a vocabulary is far wider."""
    return len(shape) == 2 and min(shape) < max(shape) <= 8 * min(shape)


def nearest_weights(matrix: Tensor, bits: int = 8, largest: int = SEVEN_BITS) -> Tensor:
    """Return the float32 weights that stand for a matrix in an export.

    Args:
        matrix: (outputs, inputs), as in `nn.Linear`; or the rows of a table of embeddings.
        bits: 8 for a scale for each output, 4 for `in_blocks`.
        largest: largest whole number with 8 bits. The scale of an output brings its largest weight there.
    """
    matrix = matrix.detach().float()
    if bits == 4:
        return in_blocks(matrix).matrix()
    scale = matrix.abs().amax(dim=1, keepdim=True) / largest
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    return (matrix / scale).round_().mul_(scale)


def nearest_activations(x: Tensor, measured: Tensor) -> Tensor:
    """Return activations in 256 steps of one scale, as ONNX's `DynamicQuantizeLinear` takes them.

    Args:
        x: any shape.
        measured: the numbers whose range decides the scale: `x` itself, or a part of it.
    """
    x, measured = x.detach(), measured.detach()
    lowest, highest = measured.amin().clamp(max=0.0), measured.amax().clamp(min=0.0)
    scale = (highest - lowest) / 255
    scale = torch.where(scale > 0, scale, 1.0)
    zero = (-lowest / scale).round().clamp(0, 255)
    return ((x / scale).round_().add_(zero).clamp_(0, 255).sub_(zero)).mul_(scale)


def levels(x: Tensor, positive: bool) -> Tensor:
    """Return the number by which each token (..., 1) of activations (..., inputs) is divided.

    Args:
        x: activations.
        positive: whether they come from GELU or ReLU: see `NEVER_FAR_BELOW_ZERO`.
    """
    x = x.detach()
    if positive:
        return x.amax(dim=-1, keepdim=True).clamp(min=NEVER_FAR_BELOW_ZERO)
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)
