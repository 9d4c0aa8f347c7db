"""Matrices in 4 bits, which a multiplication of integers turns into int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 32
"""Number of inputs that share a factor."""

LARGEST_FACTOR = 8
"""8 · −8 = −64, so the products need seven bits, as the weights of an 8-bit export do."""

LOWEST, HIGHEST = -8, 7
COLUMNS = 1024
"""Number of outputs that are computed at a time, to limit memory."""


@dataclass(frozen=True)
class Blocks:
    """A matrix (inputs, outputs) as `scale · factors · numbers`.

    Attributes:
        numbers: (blocks, BLOCK, outputs), −8 to 7. The last block is padded with 0.
        factors: (blocks, 1, outputs), 1 to 8.
        scale: (outputs,) float32.
    """

    numbers: np.ndarray[Any, Any]
    factors: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]


def in_blocks(matrix: np.ndarray[Any, Any]) -> Blocks:
    """Return blocks near to a matrix. Each block has the factor with the least squared error.

    Args:
        matrix: (inputs, outputs).
    """
    inputs, outputs = matrix.shape
    blocks = -(-inputs // BLOCK)
    numbers = np.zeros((blocks, BLOCK, outputs), np.int8)
    factors = np.ones((blocks, 1, outputs), np.uint8)
    scale = np.ones(outputs, np.float32)
    for start in range(0, outputs, COLUMNS):
        part = slice(start, start + COLUMNS)
        padded = np.pad(matrix[:, part].astype(np.float32), ((0, blocks * BLOCK - inputs), (0, 0)))
        wanted = padded.reshape(blocks, BLOCK, -1)
        largest = np.abs(wanted).max(axis=(0, 1))
        scale[part] = np.where(largest > 0, largest / (-LOWEST * LARGEST_FACTOR), 1)
        least = np.full((blocks, 1, wanted.shape[2]), np.inf, np.float32)
        for factor in range(1, LARGEST_FACTOR + 1):
            step = factor * scale[part]
            rounded = np.clip(np.rint(wanted / step), LOWEST, HIGHEST)
            error = np.square(rounded * step - wanted).sum(axis=1, keepdims=True)
            better = error < least
            least = np.where(better, error, least)
            factors[:, :, part] = np.where(better, factor, factors[:, :, part])
            numbers[:, :, part] = np.where(better, rounded, numbers[:, :, part])
    return Blocks(numbers, factors, scale)
