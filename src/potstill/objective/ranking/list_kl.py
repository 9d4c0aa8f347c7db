"""list_kl: the passages of a query have the same shares of a softmax as with the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.objective.ranking.loss import RankedBatch, RankingLoss


@dataclass(frozen=True, kw_only=True)
class ListKL(RankingLoss):
    """KL(teacher ‖ student) of the softmax over the passages of a list, times temperature²: the mean over lists.

    The softmax of a list is ListNet's (Cao et al. 2007); the factor keeps the size of the gradient when the temperature
    changes (Hinton et al. 2015).

    Attributes:
        temperature: divides the scores of both.
    """

    name: ClassVar[str] = "list_kl"
    reads_teacher: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("temperature", lambda value: 0 < value < float("inf"), "a number above 0")

    def value(self, batch: RankedBatch) -> Tensor:
        """See `RankingLoss.value`."""
        assert batch.teacher is not None
        outside = ~batch.inside
        log_p, log_q = (
            (batch.by_list(scores) / self.temperature).masked_fill(outside, -torch.inf).log_softmax(1)
            for scores in (batch.teacher, batch.scores)
        )
        # Where both are -inf, value and gradient must be 0; without the mask, inf - inf would give NaN.
        terms = log_p.exp() * (log_p - log_q).masked_fill(outside, 0)
        return batch.mean_of_lists(terms.sum(1)) * self.temperature**2
