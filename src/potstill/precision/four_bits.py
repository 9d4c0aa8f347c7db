"""Matrices in 4 bits, which a multiplication of integers turns into int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
"""Number of inputs that share a factor."""

LARGEST_FACTOR = 8
"""8 · −8 = −64, so the products need seven bits, as the weights of an 8-bit export do."""

LOWEST, HIGHEST = -8, 7
OUTPUTS = 1024
"""Number of outputs that are computed at a time, to limit memory."""


@dataclass(frozen=True)
class Blocks:
    """A matrix (outputs, inputs), as `nn.Linear` has it, as `scale · factors · numbers`.

    Attributes:
        numbers: (outputs, blocks, BLOCK) int8, −8 to 7. The last block is padded with 0.
        factors: (outputs, blocks, 1) uint8, 1 to 8.
        scale: (outputs,) float32.
        inputs: number of inputs without the padding.
    """

    numbers: Tensor
    factors: Tensor
    scale: Tensor
    inputs: int

    def matrix(self) -> Tensor:
        """Return the float32 matrix (outputs, inputs) that the numbers stand for."""
        whole = self.numbers.float() * self.factors.float()
        return whole.flatten(1)[:, : self.inputs] * self.scale[:, None]


def in_blocks(matrix: Tensor) -> Blocks:
    """Return blocks near to a matrix. Each block has the factor with the least squared error.

    Args:
        matrix: (outputs, inputs).
    """
    inputs = matrix.shape[1]
    blocks = -(-inputs // BLOCK)
    parts = [_in_blocks(part, blocks) for part in matrix.detach().float().split(OUTPUTS)]
    numbers, factors, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Blocks(numbers, factors, scale, inputs)


def _in_blocks(matrix: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs = matrix.shape
    wanted = F.pad(matrix, (0, blocks * BLOCK - inputs)).view(outputs, blocks, BLOCK)
    largest = wanted.abs().amax(dim=(1, 2))
    scale = torch.where(largest > 0, largest / (-LOWEST * LARGEST_FACTOR), 1.0)
    in_steps = wanted / scale[:, None, None]
    least = torch.full((outputs, blocks, 1), torch.inf, device=matrix.device)
    factors = torch.ones_like(least)
    for factor in range(1, LARGEST_FACTOR + 1):
        rounded = (in_steps / factor).round_().clamp_(LOWEST, HIGHEST)
        error = rounded.mul_(factor).sub_(in_steps).square_().sum(dim=2, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        factors = torch.where(better, factor, factors)
    numbers = (in_steps / factors).round_().clamp_(LOWEST, HIGHEST)
    return numbers.to(torch.int8), factors.to(torch.uint8), scale
