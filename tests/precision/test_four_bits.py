"""Matrices in 4 bits: whole numbers that multiply to int8, as near to the matrix as their blocks allow."""

from __future__ import annotations

import numpy as np
import torch

from potstill.precision.four_bits import BLOCK, in_blocks


def test_each_block_has_the_nearest_factor() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((7, 2 * BLOCK + 5)) * generator.uniform(0.01, 3, size=(7, 1))
    matrix[:, :BLOCK] *= 0.1  # a block of small weights, which a scale for the whole row would round away
    found = in_blocks(torch.from_numpy(matrix))
    numbers, factors, scale = (of.numpy() for of in (found.numbers, found.factors, found.scale))
    padded = np.pad(matrix, ((0, 0), (0, BLOCK - 5)))
    assert numbers.shape == (7, 3, BLOCK)
    for block in range(3):
        for row in range(7):
            part = padded[row, block * BLOCK : (block + 1) * BLOCK]
            errors = []
            for factor in range(1, 9):
                step = factor * float(scale[row])
                errors.append(float(((np.clip(np.rint(part / step), -8, 7) * step - part) ** 2).sum()))
            step = float(factors[row, block, 0]) * float(scale[row])
            mine = float(((numbers[row, block] * step - part) ** 2).sum())
            assert mine <= min(errors) * (1 + 1e-4) + 1e-9
    whole = numbers.astype(int) * factors
    assert np.abs(whole).max() <= 64
    error = found.matrix().numpy() - matrix
    np.testing.assert_allclose(error, whole.reshape(7, -1)[:, : matrix.shape[1]] * scale[:, None] - matrix, atol=1e-6)
    plain_scale = np.abs(matrix).max(axis=1, keepdims=True) / 7
    plain = np.rint(matrix / plain_scale) * plain_scale - matrix
    assert (error**2).mean() < 0.75 * (plain**2).mean()


def test_a_row_of_zeros_stays_zero() -> None:
    found = in_blocks(torch.zeros(2, BLOCK))
    assert not found.numbers.any()
    assert found.scale.isfinite().all()
