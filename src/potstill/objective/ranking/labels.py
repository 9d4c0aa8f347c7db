"""labels: each passage alone is relevant or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from potstill.objective.ranking.loss import RankedBatch, RankingLoss


@dataclass(frozen=True, kw_only=True)
class Labels(RankingLoss):
    """Binary cross-entropy of the score, as a logit, with the label: the mean over passages (Nogueira and Cho 2019)."""

    name: ClassVar[str] = "labels"
    reads_labels: ClassVar[bool] = True

    def value(self, batch: RankedBatch) -> Tensor:
        """See `RankingLoss.value`."""
        assert batch.relevant is not None
        return F.binary_cross_entropy_with_logits(batch.scores, batch.relevant)
