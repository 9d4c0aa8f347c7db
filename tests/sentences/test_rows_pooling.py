"""Pooling of several texts in a block is the pooling of each text alone."""

import pytest
import torch

from potstill.sentences import MODES, Pooling
from potstill.sentences.rows_pooling import pool_rows
from potstill.student import Rows

FIRST, PAD, SLOTS = 2, 0, 3
LENGTHS = [[3, 4, 2], [9], [5, 1], [2, 7]]


def sample(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Rows, torch.Tensor, torch.Tensor]:
    """(4, 9, 5) hidden states and their texts; and the same texts padded, one to a row, with their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((4, 9), PAD)
    mask = torch.zeros(4 * SLOTS, 9, dtype=torch.bool)
    hidden = torch.randn(4, 9, 5, generator=generator, dtype=torch.float64).to(dtype)
    hidden = hidden.round(decimals=1).requires_grad_(True)  # some maxima are shared by two tokens
    alone = []
    for block, lengths in enumerate(LENGTHS):
        start = 0
        for number in range(SLOTS):
            length = lengths[number] if number < len(lengths) else 0
            ids[block, start : start + length] = 5
            if length:
                ids[block, start] = FIRST
            mask[block * SLOTS + number, :length] = True
            text = hidden[block, start : start + length]
            alone.append(torch.cat([text, hidden.new_full((9 - length, 5), 99.0)]))
            start += length
    return hidden, Rows.of(ids, FIRST, PAD, SLOTS), torch.stack(alone), mask


@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("max", "cls", "mean"), MODES])
def test_each_text_is_pooled_as_if_it_were_alone(modes: tuple[str, ...]) -> None:
    hidden, rows, alone, mask = sample(seed=len(modes) + len(modes[0]))
    filled = mask.any(1)
    assert torch.equal(rows.filled, filled)
    expected = Pooling(modes)(alone[filled], mask[filled])
    wanted = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((expected * wanted).sum(), hidden)
    found = pool_rows(modes, hidden, rows)
    torch.testing.assert_close(found[filled], expected, rtol=1e-12, atol=1e-12)
    assert (found[~filled] == 0).all()
    (ours,) = torch.autograd.grad((found[filled] * wanted).sum(), hidden)
    torch.testing.assert_close(ours, gradient, rtol=1e-12, atol=1e-12)
    (everywhere,) = torch.autograd.grad(pool_rows(modes, hidden, rows).sum(), hidden)
    assert (everywhere[~rows.inside] == 0).all()


def test_sums_of_half_precision_are_made_in_float32() -> None:
    ids = torch.full((1, 3000), 5)
    ids[:, 0] = FIRST
    hidden = torch.full((1, 3000, 2), 40.0, dtype=torch.float16)  # the sum is beyond float16
    pooled = pool_rows(("mean",), hidden, Rows.of(ids, FIRST, PAD, 1))
    assert torch.equal(pooled, torch.full((1, 2), 40.0, dtype=torch.float16))
