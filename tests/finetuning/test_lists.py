"""Batches of lists: every passage once in an epoch, lists whole, sizes alike, and the same order again."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.finetuning.lists import ListBatches, ListSampler, Part
from potstill.finetuning.rows import Rows


def sampler_of(sizes: list[int], batch_size: int, seed: int = 0) -> ListSampler:
    lists = np.repeat(np.arange(len(sizes)), sizes)
    return ListSampler(lists, np.random.default_rng(1).integers(3, 40, len(lists)), batch_size, seed)


def batches_of(sampler: ListSampler) -> list[list[Part]]:
    parts, size = [*sampler], sampler.batch_size
    batches = [parts[start : start + size] for start in range(0, len(parts), size)]
    assert all(len(batch) == sampler.batch_size for batch in batches)
    assert len(batches) == sampler.batches == len(sampler) / sampler.batch_size
    return [[part for part in batch if part] for batch in batches]


@pytest.mark.parametrize("batch_size", [1, 2, 8, 32])
@pytest.mark.parametrize(
    "sizes", [[2] * 50, [1] * 7, [321, 5, 17, 1, 33, 64, 30], [*range(1, 60)], [5] * 9, [3], [200]]
)
def test_every_row_is_in_one_batch_and_lists_are_whole(sizes: list[int], batch_size: int) -> None:
    sampler = sampler_of(sizes, batch_size)
    lists = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = batches_of(sampler)
        parts = [part for batch in batches for part in batch]
        assert all(batches)
        assert sorted(row for part in parts for row in part) == [*range(sum(sizes))]
        for number, size in enumerate(sizes):
            of_list = [part for part in parts if lists[part[0]] == number]
            assert all({*lists[[*part]]} == {number} for part in of_list)
            count = -(-size // batch_size)
            assert len(of_list) == count
            assert max(map(len, of_list)) - min(map(len, of_list)) <= 1
        rows = [sum(map(len, batch)) for batch in batches]
        assert max(rows) < 2 * batch_size
        costs = [max(sampler.lengths[[*part]].max() for part in batch) for batch in batches]
        assert rows[0] * costs[0] == max(row * cost for row, cost in zip(rows, costs, strict=True))


def test_triples_fill_every_batch() -> None:
    assert [len(batch) for batch in batches_of(sampler_of([2] * 48, 32))] == [16, 16, 16]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sizes = [70, 4, 9, 9, 12, 3, 3, 8]
    one, same, other = sampler_of(sizes, 16), sampler_of(sizes, 16), sampler_of(sizes, 16, seed=1)
    first = [*one]
    assert [*one] == first == [*same] != [*other]
    same.set_epoch(1)
    assert [*same] != first
    long = [{part for part in epoch if part and max(part) < 70} for epoch in (first, [*same])]
    assert long[0] != long[1]  # a long list is split anew
    same.set_epoch(0)
    assert [*same] == first


def test_a_batch_says_where_its_lists_are() -> None:
    lengths = np.array([3, 5, 2, 4])
    ids = np.arange(lengths.sum())
    values = {"lists": np.array([0, 0, 1, 1]), "labels": np.array([1, 0, 0, 1], np.float32)}
    batch = ListBatches(Rows({"input_ids": ids}, values, lengths)).__getitems__([(3, 2), (), (1,), ()])
    assert batch["places"].tolist() == [[0, 1], [2, -1]]
    assert batch["labels"].tolist() == [1, 0, 0]
    assert batch["input_ids"][:, 0].tolist() == [10, 8, 3]
    assert "lists" not in batch
