"""Exact search by inner products."""

from __future__ import annotations

from collections.abc import Iterable

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
