"""Rows of different lengths, and batches with as little padding as possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

Array = np.ndarray[Any, Any]

BATCHES_SORTED = 50
"""Batches whose rows are sorted by length together, as in transformers' `get_length_grouped_indices`."""

NO_LABEL = -100
"""The number of a class in a row that has none. torch's cross-entropy leaves out such rows."""


class Pieces:
    """A column in several pieces, which may be files that are mapped into memory. Only what is read takes memory.

    Args:
        pieces: arrays or other pieces, (rows or tokens, …), which follow each other.
        places: the places of the last axis that the column has, in its order; all if None.
    """

    def __init__(self, pieces: Sequence[Array | Pieces], places: Sequence[int] | None = None) -> None:
        self.pieces = pieces
        self.places = None if places is None else np.asarray(places)
        self._starts = np.cumsum([0, *map(len, pieces)])
        self.dtype: np.dtype[Any] = pieces[0].dtype
        width = pieces[0].shape[1:] if self.places is None else (*pieces[0].shape[1:-1], len(self.places))
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        wanted = np.arange(len(self))[key]
        numbers = np.atleast_1d(wanted)
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        of = np.searchsorted(self._starts, numbers, side="right") - 1
        for number in np.unique(of).tolist():
            here = of == number
            part = np.asarray(self.pieces[number][numbers[here] - self._starts[number]])
            found[here] = part if self.places is None else part[..., self.places]
        return found if np.ndim(wanted) else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)


@dataclass
class Rows(Dataset[dict[str, Tensor]]):
    """Inputs and labels for a model; each row is an example or a window.

    Attributes:
        tokens: name → column with one number or vector per token, (tokens of all rows, …), with the rows in order; it
            includes `input_ids`.
        values: name → column with one number or vector per row, (rows, …).
        lengths: (rows,) number of tokens in each row.
        padding: name of a column of tokens → its padding value; 0 if not given.
        multiple: a batch is as long as its longest row, rounded up to a multiple of this.
        limit: maximum length of a batch.
        windows: the windows of questions from `make_windows`; None for sentences.
        labelled: number of the first rows that have labels; None for all. The labels of the others are `NO_LABEL`, or
            NaN.
    """

    tokens: dict[str, Array]
    values: dict[str, Array]
    lengths: Array
    padding: Mapping[str, int] = field(default_factory=dict)
    multiple: int = 8
    limit: int = 512
    windows: datasets.Dataset | None = None
    labelled: int | None = None

    def __post_init__(self) -> None:
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch: columns of tokens and `attention_mask` are (B, L, …), the other columns are (B, …)."""
        places = np.asarray(indices)
        lengths = self.lengths[places]
        longest = min(-(-int(lengths.max()) // self.multiple) * self.multiple, self.limit)
        inside = np.arange(longest) < lengths[:, None]
        source = (self._starts[places][:, None] + np.arange(longest))[inside]
        batch = {}
        for name, column in self.tokens.items():
            padded = np.full((*inside.shape, *column.shape[1:]), self.padding.get(name, 0), _wide(column.dtype))
            padded[inside] = column[source]
            batch[name] = torch.from_numpy(padded)
        batch["attention_mask"] = torch.from_numpy(inside.astype(np.int64))
        for name, column in self.values.items():
            batch[name] = torch.from_numpy(np.asarray(column[places], _wide(column.dtype)))
        return batch

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to before `stop`, without their windows."""
        tokens = slice(int(self._starts[start]), int(self._starts[stop]))
        return replace(
            self,
            tokens={name: column[tokens] for name, column in self.tokens.items()},
            values={name: column[start:stop] for name, column in self.values.items()},
            lengths=self.lengths[start:stop],
            windows=None,
        )

    def followed_by(self, unlabelled: Rows) -> Rows:
        """Return these rows and then rows without labels. Columns that those lack hold `NO_LABEL`, or NaN, for them.

        Columns that are mapped into memory, such as a teacher's logits of tokens, stay where they are.
        """

        def joined(columns: dict[str, Any], others: dict[str, Any], count: int) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, column in columns.items():
                nothing = NO_LABEL if np.issubdtype(column.dtype, np.integer) else np.nan
                other = others[name] if name in others else np.full((count, *column.shape[1:]), nothing, column.dtype)
                mapped = any(isinstance(one, np.memmap | Pieces) for one in (column, other))
                found[name] = Pieces([column, other]) if mapped else np.concatenate([column, other])
            return found

        return replace(
            self,
            tokens=joined(self.tokens, unlabelled.tokens, int(unlabelled.lengths.sum())),
            values=joined(self.values, unlabelled.values, len(unlabelled)),
            lengths=np.concatenate([self.lengths, unlabelled.lengths]),
            labelled=len(self),
        )

    def batches(self, batch_size: int) -> Iterator[tuple[Array, dict[str, Tensor]]]:
        """Yield all rows once, the longest first, as pairs of row indices and their batch."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            yield places, self.__getitems__(places.tolist())


class LengthGroupedSampler(Sampler[int]):
    """Yields the row indices of one epoch, with rows of similar length together. Seed and epoch determine the order.

    The batch with the longest row comes first, so that a lack of memory shows at once. The other batches come in random
    order, so that epochs do not all end with short rows.

    Args:
        lengths: (rows,) number of tokens in each row.
        batch_size: number of rows that are padded to the same length.
        seed: seed of the order.
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
        full_batches = len(order) // self.batch_size
        others = (1 + torch.randperm(max(0, full_batches - 1), generator=generator)).tolist()
        for batch in [0, *others, full_batches] if full_batches else [0]:
            yield from order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __len__(self) -> int:
        return len(self.lengths)


class MixedSampler(LengthGroupedSampler):
    """Yields all labelled rows and a part of the unlabelled ones in an epoch, with rows of similar length together.

    Every batch has the same share of labelled rows, as nearly as whole rows allow. Otherwise the loss on few labels
    would be large in some batches and 0 in others. The unlabelled rows are drawn in a random order, which is a new one
    when all have been drawn. An epoch goes on where the last one ended. So all are drawn equally often in the end,
    whatever the size of the part. Seed and epoch determine the order.

    Args:
        lengths: (rows,) number of tokens in each row, those of the labelled ones first.
        labelled: number of labelled rows.
        drawn: number of unlabelled rows in an epoch.
        batch_size: number of rows that are padded to the same length.
        seed: seed of the order.
    """

    def __init__(self, lengths: Array, labelled: int, drawn: int, batch_size: int, seed: int) -> None:
        super().__init__(lengths, batch_size, seed)
        self.labelled = labelled
        self.drawn = drawn

    def rows_of_epoch(self) -> list[int]:
        """Return the indices of the rows in the chosen epoch."""
        count = len(self.lengths) - self.labelled
        first = self.epoch * self.drawn
        before, after = first // count, -(-(first + self.drawn) // count)
        orders = [np.random.default_rng((self.seed, number)).permutation(count) for number in range(before, after)]
        places = np.concatenate(orders)[first - before * count :][: self.drawn]
        return [*range(self.labelled), *(self.labelled + places).tolist()]

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 10_007 + self.epoch)
        lengths, rows = np.asarray(self.lengths), np.asarray(self.rows_of_epoch())
        pieces = -(-len(self) // (BATCHES_SORTED * self.batch_size))
        kinds = []
        for kind in (rows[: self.labelled], rows[self.labelled :]):
            shuffled = kind[torch.randperm(len(kind), generator=generator).numpy()]
            kinds.append(np.array_split(shuffled, pieces))
        order = np.concatenate([_merged(parts, lengths) for parts in zip(*kinds, strict=True)])
        full = len(order) // self.batch_size
        numbers = torch.randperm(full, generator=generator).tolist()
        longest = int(lengths[order].argmax()) // self.batch_size
        if longest < full:
            numbers.remove(longest)
            numbers.insert(0, longest)
        for number in [*numbers, full]:
            yield from order[number * self.batch_size : (number + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return self.labelled + self.drawn


def _merged(kinds: Sequence[Array], lengths: Array) -> Array:
    """Return rows of several kinds, the longest first, so that each stretch has every kind in the same share."""
    ordered = [rows[np.argsort(-lengths[rows], kind="stable")] for rows in kinds]
    places = np.concatenate([(np.arange(len(rows)) + 0.5) / max(len(rows), 1) for rows in ordered])
    return np.concatenate(ordered)[np.argsort(places, kind="stable")]


def sample_rows(split: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """Return a random sample of `limit` rows of a split, in their order; all rows if `limit` is None.

    The sample is the same for every seed of a run. It is not the first rows, which may all have the same label: IMDb's
    rows are sorted by label.
    """
    if limit is None or limit >= len(split):
        return split
    return split.select(sorted(np.random.default_rng(0).permutation(len(split))[:limit].tolist()))


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype for a model's input: int64 for integers, otherwise the same."""
    return np.dtype(np.int64) if np.issubdtype(dtype, np.integer) else dtype
