"""Pooling of blocks that hold several texts: one vector for each text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.student.rows import Rows


def pool_rows(modes: tuple[str, ...], hidden: Tensor, rows: Rows) -> Tensor:
    """Return the pooled vectors of all texts in a batch of blocks: see `Pooling` for the modes.

    Sums are made in float32 at least, and the result has the precision of `hidden`.

    Args:
        modes: of the pooling.
        hidden: (B, L, H), the last hidden states.
        rows: the texts in the blocks, at most S in each.

    Returns:
        (B · S, P); zeros where there is no text.
    """
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).flatten(0, 1)
    texts, places = rows.texts.flatten(), rows.positions.flatten()
    count = len(rows.texts) * rows.slots
    return torch.cat([_POOL[mode](wide, texts, places, count) for mode in modes], dim=-1).to(hidden.dtype)


def _sum(values: Tensor, texts: Tensor, count: int) -> Tensor:
    """Return the sums (count, …) of values (N, …) over the texts; padding goes to a text beyond the last."""
    return values.new_zeros((count + 1, *values.shape[1:])).index_add(0, texts, values)[:-1]


def _lengths(values: Tensor, texts: Tensor, count: int) -> Tensor:
    """Return the number (count, 1) of tokens of each text, at least 1."""
    return _sum(values.new_ones(len(texts)), texts, count).clamp(min=1)[:, None]


def _mean(hidden: Tensor, texts: Tensor, places: Tensor, count: int) -> Tensor:
    return _sum(hidden, texts, count) / _lengths(hidden, texts, count)


def _mean_sqrt_len(hidden: Tensor, texts: Tensor, places: Tensor, count: int) -> Tensor:
    return _sum(hidden, texts, count) / _lengths(hidden, texts, count).sqrt()


def _weightedmean(hidden: Tensor, texts: Tensor, places: Tensor, count: int) -> Tensor:
    weights = (places + 1).to(hidden.dtype)
    return _sum(hidden * weights[:, None], texts, count) / _sum(weights, texts, count).clamp(min=1)[:, None]


def _cls(hidden: Tensor, texts: Tensor, places: Tensor, count: int) -> Tensor:
    return _sum(hidden * (places == 0)[:, None], texts, count)


def _lasttoken(hidden: Tensor, texts: Tensor, places: Tensor, count: int) -> Tensor:
    following = torch.cat([texts[1:], texts.new_full((1,), -1)])
    return _sum(hidden * (texts != following)[:, None], texts, count)


def _max(hidden: Tensor, texts: Tensor, places: Tensor, count: int) -> Tensor:
    zeros = hidden.new_zeros((count + 1, hidden.shape[1]))
    return zeros.index_reduce(0, texts, hidden, "amax", include_self=False)[:-1]


_POOL: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weightedmean,
    "lasttoken": _lasttoken,
}
