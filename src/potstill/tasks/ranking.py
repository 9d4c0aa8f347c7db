"""The measures of a ranked list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray


def worst_order(scores: NDArray[Any], relevant: Sequence[bool]) -> NDArray[np.int64]:
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


def rank_measures(scores: NDArray[Any], relevant: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Return the means over lists of average precision (`map`) and reciprocal rank (`mrr`), and MAP as `score`.

    Of passages with equal scores the irrelevant ones count as ranked first.

    Args:
        scores: (N,) scores of all passages, one list after another.
        relevant: for each list, whether each passage is relevant; at least one is.

    Returns:
        The measures in percent.
    """
    gains = ranked_gains(scores, relevant)
    mean = 100 * fmean(map(average_precision, gains))
    return {"map": mean, "mrr": 100 * fmean(map(reciprocal_rank, gains)), "score": mean}


def ranked_gains(scores: NDArray[Any], relevant: Sequence[Sequence[bool]]) -> list[list[float]]:
    """Return the relevance of the passages of each list in the order of their scores; see `rank_measures`."""
    gains, start = [], 0
    for marks in relevant:
        order = worst_order(scores[start : start + len(marks)], marks)
        gains.append([float(marks[place]) for place in order])
        start += len(marks)
    return gains


def expected_precision(passages: int, relevant: int) -> float:
    """Return the mean average precision, 0 to 1, over all orders of a list of passages of which some are relevant.

    A relevant passage at rank i has i - 1 others before it, and each of these is relevant with the probability
    (R - 1) / (N - 1). The mean over the ranks i = 1 … N of (1 + (i - 1) (R - 1) / (N - 1)) / i is the result.
    """
    share = (relevant - 1) / (passages - 1) if passages > 1 else 0.0
    return math.fsum((1 + (rank - 1) * share) / rank for rank in range(1, passages + 1)) / passages


def _dcg(gains: Iterable[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
