"""Rows of different lengths, and batches of them padded no further than they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

Array = np.ndarray[Any, Any]


@dataclass
class Rows(Dataset[dict[str, Tensor]]):
    """What a model reads and what it should say, a row an example or a window.

    Attributes:
        tokens: columns with one number a token, each (tokens of all rows,), rows one after another; `input_ids` among
            them.
        values: columns with one number, or one vector, a row: (rows, …).
        lengths: (rows,) tokens of each.
        padding: what fills a column of tokens up; 0 where not given.
        multiple: batches are as long as their longest row, rounded up to a multiple of this.
        limit: longest batch.
        windows: of questions, what `make_windows` returned; None for sentences.
    """

    tokens: dict[str, Array]
    values: dict[str, Array]
    lengths: Array
    padding: Mapping[str, int] = field(default_factory=dict)
    multiple: int = 8
    limit: int = 512
    windows: datasets.Dataset | None = None

    def __post_init__(self) -> None:
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch: (B, L) of columns of tokens and of `attention_mask`, (B, …) of the others."""
        places = np.asarray(indices)
        lengths = self.lengths[places]
        longest = min(-(-int(lengths.max()) // self.multiple) * self.multiple, self.limit)
        inside = np.arange(longest) < lengths[:, None]
        source = (self._starts[places][:, None] + np.arange(longest))[inside]
        batch = {}
        for name, column in self.tokens.items():
            padded = np.full(inside.shape, self.padding.get(name, 0), _wide(column.dtype))
            padded[inside] = column[source]
            batch[name] = torch.from_numpy(padded)
        batch["attention_mask"] = torch.from_numpy(inside.astype(np.int64))
        for name, column in self.values.items():
            batch[name] = torch.from_numpy(np.asarray(column[places], _wide(column.dtype)))
        return batch

    def batches(self, batch_size: int) -> Iterator[tuple[Array, dict[str, Tensor]]]:
        """Yield all rows once, the longest first, as the numbers of rows and their batch."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            yield places, self.__getitems__(places.tolist())


class LengthGroupedSampler(Sampler[int]):
    """The rows of one epoch in an order that (seed, epoch) alone determine, rows of like length together.

    The batch with the longest row comes first, so that what does not fit into memory is told at once; the others come
    in random order, lest every epoch end on short rows.

    Args:
        lengths: (rows,) tokens of each.
        batch_size: rows that are padded to one length.
        seed: of the order.
    """

    def __init__(self, lengths: Array, batch_size: int, seed: int) -> None:
        self.lengths = lengths.tolist()
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 10_007 + self.epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        whole = len(order) // self.batch_size
        others = (1 + torch.randperm(max(0, whole - 1), generator=generator)).tolist()
        for batch in [0, *others, whole] if whole else [0]:
            yield from order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __len__(self) -> int:
        return len(self.lengths)


def drawn(split: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """Return so many rows of a split, in their order; the same for every seed of a run, but from all over it.

    The first rows of a file may all have one label: IMDb's are sorted by it.
    """
    if limit is None or limit >= len(split):
        return split
    return split.select(sorted(np.random.default_rng(0).permutation(len(split))[:limit].tolist()))


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that a model takes: int64 for ids."""
    return np.dtype(np.int64) if np.issubdtype(dtype, np.integer) else dtype
