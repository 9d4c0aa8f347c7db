"""Matrices in 4 bits: whole numbers that multiply to int8, as near to the matrix as their blocks allow."""

from __future__ import annotations

import numpy as np

from potstill.export.four_bits import BLOCK, in_blocks


def test_each_block_has_the_nearest_factor() -> None:
    generator = np.random.default_rng()
    matrix = generator.standard_normal((2 * BLOCK + 5, 7)) * generator.uniform(0.01, 3, size=(1, 7))
    matrix[:BLOCK] *= 0.1  # a block of small weights, which a scale for the whole column would round away
    found = in_blocks(matrix)
    padded = np.pad(matrix, ((0, BLOCK - 5), (0, 0)))
    assert found.numbers.shape == (3, BLOCK, 7)
    for block in range(3):
        for column in range(7):
            part = padded[block * BLOCK : (block + 1) * BLOCK, column]
            errors = []
            for factor in range(1, 9):
                step = factor * float(found.scale[column])
                errors.append(float(((np.clip(np.rint(part / step), -8, 7) * step - part) ** 2).sum()))
            step = float(found.factors[block, 0, column]) * float(found.scale[column])
            mine = float(((found.numbers[block, :, column] * step - part) ** 2).sum())
            assert mine <= min(errors) * (1 + 1e-4) + 1e-9
    whole = found.numbers.astype(int) * found.factors
    assert np.abs(whole).max() <= 64
    error = whole.reshape(-1, 7)[: len(matrix)] * found.scale - matrix
    plain_scale = np.abs(matrix).max(axis=0) / 7
    plain = np.rint(matrix / plain_scale) * plain_scale - matrix
    assert (error**2).mean() < 0.75 * (plain**2).mean()


def test_a_column_of_zeros_stays_zero() -> None:
    found = in_blocks(np.zeros((BLOCK, 2)))
    assert not found.numbers.any()
    assert np.isfinite(found.scale).all()
