"""Batches of a reranker: the passages of one query stay together, and batches are about equally large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from potstill.finetuning.rows import Array, Rows

Part = tuple[int, ...]
"""The rows of a list, or of a part of a long list. A batch is some of them; empty ones fill it up to its size."""


class ListBatches(Dataset[dict[str, Tensor]]):
    """Rows in lists. It makes batches of the parts that `ListSampler` yields.

    Args:
        rows: rows with a column `lists`, the number of the list of each row.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """Return a batch as `Rows` does, with `places`, (Q, K), in place of `lists`: see `RankedBatch`."""
        parts = [part for part in parts if part]
        batch = self.rows.__getitems__([row for part in parts for row in part])
        del batch["lists"]
        places = torch.full((len(parts), max(map(len, parts))), -1)
        start = 0
        for number, part in enumerate(parts):
            places[number, : len(part)] = torch.arange(start, start + len(part))
            start += len(part)
        return batch | {"places": places}


class ListSampler(Sampler[Part]):
    """Yields the parts of one epoch, `batch_size` of them for each batch. Seed and epoch determine the order.

    A batch has about as many rows as `batch_size`. A list with more rows is split at random, anew in each epoch, into
    parts of equal size. The number of batches is the same in each epoch, so that the length of a training is known. The
    batch with the most tokens comes first, so that a lack of memory shows at once.

    Args:
        lists: (rows,) number of the list of each row.
        lengths: (rows,) number of tokens in each row.
        batch_size: number of rows of a batch.
        seed: seed of the order.

    Attributes:
        batches: number of batches of an epoch.
    """

    def __init__(self, lists: Array, lengths: Array, batch_size: int, seed: int) -> None:
        order = np.argsort(lists, kind="stable")
        self.lists = np.split(order, np.flatnonzero(np.diff(lists[order])) + 1)
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        sizes = [len(part) for rows in self.lists for part in self._split(rows)]
        self.batches = _batches_needed(sizes, batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[Part]:
        for batch in self._batches(np.random.default_rng([self.seed, self.epoch])):
            yield from batch
            yield from [()] * (self.batch_size - len(batch))

    def _split(self, rows: Array) -> list[Array]:
        return np.array_split(rows, -(-len(rows) // self.batch_size))

    def _batches(self, rng: np.random.Generator) -> list[list[Part]]:
        """Give each part, the longest first, to a random batch with room for it, or else to the emptiest batch."""
        parts: list[Part] = []
        for rows in self.lists:
            shuffled = rng.permutation(rows) if len(rows) > self.batch_size else rows
            parts += [tuple(part.tolist()) for part in self._split(shuffled)]
        parts = [parts[place] for place in rng.permutation(len(parts))]
        parts.sort(key=len, reverse=True)
        batches: list[list[Part]] = [[] for _ in range(self.batches)]
        with_room: list[list[int]] = [[] for _ in range(self.batch_size + 1)]  # free rows → numbers of batches
        with_room[-1] = rng.permutation(self.batches).tolist()
        for part, draw in zip(parts, rng.random(len(parts)).tolist(), strict=True):
            fitting = sum(map(len, with_room[len(part) :]))
            place, room = int(draw * fitting), len(part)
            if not fitting:
                place, room = 0, max(free for free, numbers in enumerate(with_room) if numbers)
            while place >= len(with_room[room]):
                place -= len(with_room[room])
                room += 1
            numbers = with_room[room]
            numbers[place], numbers[-1] = numbers[-1], numbers[place]
            number = numbers.pop()
            batches[number].append(part)
            with_room[max(0, room - len(part))].append(number)
        for empty in (batch for batch in batches if not batch):  # the parts may fit into fewer batches by chance
            empty.append(max(batches, key=len).pop())
        batches = [batches[place] for place in rng.permutation(len(batches))]
        first = max(range(len(batches)), key=lambda number: self._tokens(batches[number]))
        return [batches[first], *batches[:first], *batches[first + 1 :]]

    def _tokens(self, batch: list[Part]) -> int:
        rows = [row for part in batch for row in part]
        return len(rows) * int(self.lengths[rows].max())


def _batches_needed(sizes: Sequence[int], capacity: int) -> int:
    """Return how many batches parts of some sizes need if each, the largest first, goes where least room is left."""
    with_room: dict[int, int] = {}  # free rows → number of batches
    count = 0
    for size in sorted(sizes, reverse=True):
        room: Any = min((free for free, number in with_room.items() if number and free >= size), default=None)
        if room is None:
            count, room = count + 1, capacity
        else:
            with_room[room] -= 1
        with_room[room - size] = with_room.get(room - size, 0) + 1
    return count
