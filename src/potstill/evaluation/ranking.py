"""Exact search by inner products, and the measures of a ranked list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SCORES_AT_A_TIME = 2**26
"""Scores of queries × passages that are in memory at the same time, 256 MiB in float32."""


def search(queries: Tensor, blocks: Iterable[Tensor], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the passages with the largest inner products, exactly: every query is compared with every passage.

    Args:
        queries: (Q, D) float32.
        blocks: the passages in order, as (B, D) float32 on the device of the queries; B may differ between blocks.
        k: number of passages to find for each query; all passages if there are fewer.

    Returns:
        Scores and places of the passages, (Q, k) each, the best first; of equal scores the earlier passage first.
    """
    best_scores = queries.new_empty((len(queries), 0))
    best_places = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    start = 0
    for block in blocks:
        found = []
        for some, scores, places in zip(
            *(part.split(max(1, SCORES_AT_A_TIME // len(block))) for part in (queries, best_scores, best_places)),
            strict=True,
        ):
            new, where = (some @ block.T).topk(min(k, len(block)))
            scores, places = torch.cat([scores, new], 1), torch.cat([places, where + start], 1)
            scores, order = scores.topk(min(k, scores.shape[1]))
            found.append((scores, places.gather(1, order)))
        best_scores, best_places = (torch.cat(parts) for parts in zip(*found, strict=True))
        start += len(block)
    scores, places = best_scores.cpu().numpy(), best_places.cpu().numpy()
    order = np.lexsort((places, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)


def worst_order(scores: NDArray[np.float64], relevant: Sequence[bool]) -> NDArray[np.int64]:
    """Return the order of passages by score, (N,), the best first; of equal scores the irrelevant passages first.

    A model that gives all passages the same score must not profit from a file that lists the relevant ones first.
    """
    return np.lexsort((np.asarray(relevant, bool), -np.asarray(scores)))


def reciprocal_rank(gains: Sequence[float], k: int | None = None) -> float:
    """Return 1 / rank of the first relevant passage among the first k; 0 if there is none.

    Args:
        gains: the relevance of the passages in their ranked order; 0 is not relevant.
        k: how many of them count; all if None.
    """
    return next((1 / rank for rank, gain in enumerate(gains[:k], 1) if gain > 0), 0.0)


def average_precision(gains: Sequence[float]) -> float:
    """Return the mean of the precision at the rank of each relevant passage. All passages must be in the ranked list.

    `gains` are as in `reciprocal_rank`, with at least one relevant passage.
    """
    ranks = [rank for rank, gain in enumerate(gains, 1) if gain > 0]
    return sum(number / rank for number, rank in enumerate(ranks, 1)) / len(ranks)


def ndcg(gains: Sequence[float], judged: Iterable[float], k: int) -> float:
    """Return the normalised discounted cumulative gain of the first k passages (Järvelin and Kekäläinen 2002).

    The gain is the relevance itself and the discount log2(rank + 1), as in trec_eval.

    Args:
        gains: as in `reciprocal_rank`.
        judged: the relevance of all passages that are relevant to the query, in any order.
        k: how many passages count.
    """
    ideal = sorted(judged, reverse=True)
    return _dcg(gains[:k]) / _dcg(ideal[:k])


def recall(gains: Sequence[float], relevant: int, k: int) -> float:
    """Return the share of the relevant passages that are among the first k; `relevant` is their number."""
    return sum(gain > 0 for gain in gains[:k]) / relevant


def _dcg(gains: Iterable[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
