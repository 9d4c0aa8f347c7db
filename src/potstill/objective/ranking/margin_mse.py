"""margin_mse: two passages are as far apart for the student as for its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from potstill.objective.ranking.loss import RankedBatch, RankingLoss


@dataclass(frozen=True, kw_only=True)
class MarginMSE(RankingLoss):
    """Mean squared error of score differences (Hofstätter et al. 2020, equation 7).

    The mean is over all pairs of passages of a list, then over lists. A triple has one pair.
    """

    name: ClassVar[str] = "margin_mse"
    reads_teacher: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def value(self, batch: RankedBatch) -> Tensor:
        """See `RankingLoss.value`."""
        assert batch.teacher is not None
        # With d = student − teacher, the mean of (dᵢ − dⱼ)² over the pairs i < j of n passages is twice the sample
        # variance of d. So nothing of the size of all pairs is made.
        count = batch.inside.sum(1)
        error = batch.by_list(batch.scores - batch.teacher)
        mean = error.sum(1) / count.clamp(min=1)
        squares = (error - mean[:, None]).square().masked_fill(~batch.inside, 0).sum(1)
        return batch.mean_of_lists(2 * squares / (count - 1).clamp(min=1))
