"""score_mse: the student's score is its teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from potstill.objective.ranking.loss import RankedBatch, RankingLoss


@dataclass(frozen=True, kw_only=True)
class ScoreMSE(RankingLoss):
    """Mean squared difference between the scores of student and teacher, over passages."""

    name: ClassVar[str] = "score_mse"
    reads_teacher: ClassVar[bool] = True

    def value(self, batch: RankedBatch) -> Tensor:
        """See `RankingLoss.value`."""
        assert batch.teacher is not None
        return F.mse_loss(batch.scores, batch.teacher)
