"""BlockSplitter: pieces that are blocks themselves, draws of their own, and steps that are the same everywhere."""

import pytest
import torch

from potstill import PotstillError
from potstill.corpus import BlockSplitter
from potstill.corpus.tokenizer import TokenizerSpec


def splitter(
    size: int = 8, share: float = 0.9, block_size: int = 24, first: float = 0.0, **ends: int | None
) -> BlockSplitter:
    spec = {"prefix": 1, "suffix": 2, **ends}
    described = TokenizerSpec("", 50, separator=2, special_ids=[1, 2], unknown=None, **spec)
    return BlockSplitter(block_size, size, share, described, first)


@pytest.mark.parametrize("ends", [{}, {"suffix": None}, {"prefix": None, "suffix": None}], ids=str)
def test_pieces_are_blocks_of_the_same_text_in_order(ends: dict[str, None]) -> None:
    ids, sample_index = torch.randint(5, 50, (3, 24)), torch.tensor([7, 0, 2**40])
    before = ids.clone()
    pieces, draws = splitter(**ends)(ids, sample_index)
    expected, numbers = [], []
    for block, number in zip(before.tolist(), sample_index.tolist(), strict=True):
        for piece in range(3):
            tokens = block[8 * piece : 8 * piece + 8]
            first, last = ends.get("prefix", 1), ends.get("suffix", 2)
            tokens[0] = tokens[0] if first is None else first
            tokens[-1] = tokens[-1] if last is None else last
            expected.append(tokens)
            numbers.append(3 * number + piece)
    assert pieces.tolist() == expected
    assert draws.tolist() == numbers
    assert torch.equal(ids, before)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.85, 0.9, 1.0])
def test_short_steps_are_spread_evenly(share: float) -> None:
    short = [splitter(share=share).applies(step, step / 2000) for step in range(2000)]
    assert sum(short) == pytest.approx(2000 * share, abs=1)
    assert all(abs(sum(short[start : start + 100]) - 100 * share) <= 1 for start in range(0, 1900, 7))


@pytest.mark.parametrize(("share", "first"), [(0.9, 0.5), (0.9, 0.9), (0.6, 0.25), (1.0, 1.0), (1.0, 0.3)])
def test_short_steps_first_and_long_ones_spread_over_the_rest(share: float, first: float) -> None:
    split = splitter(share=share, first=first)
    short = [split.applies(step, step / 2000) for step in range(2000)]
    assert sum(short) == pytest.approx(2000 * share, abs=1)  # as many as without an order
    begin = round(2000 * first)
    assert all(short[:begin])
    rest = (share - first) / (1 - first) if first < 1 else 1.0
    assert all(abs(sum(short[start : start + 100]) - 100 * rest) <= 1 for start in range(begin, 1900, 7))


@pytest.mark.parametrize(("block_size", "size"), [(24, 7), (24, 24), (24, 48), (24, 2)])
def test_a_size_that_does_not_fit(block_size: int, size: int) -> None:
    with pytest.raises(PotstillError, match=f"--short_block_size is {size}.*{block_size} tokens"):
        splitter(size, block_size=block_size)
