"""The interface of a loss of a reranker, and what it reads of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.objective.term import Weighted


@dataclass(frozen=True)
class RankedBatch:
    """The scores of a batch of B passages in Q lists of at most K passages.

    Attributes:
        scores: (B,) scores of the model in training, in float32 or wider.
        places: (Q, K) int64, the places of the passages of each list among the B; -1 where a list is shorter.
        teacher: (B,) scores of the teacher; None without one.
        relevant: (B,) 1 for a relevant passage and 0 for another; None without labels.
    """

    scores: Tensor
    places: Tensor
    teacher: Tensor | None = None
    relevant: Tensor | None = None

    @property
    def inside(self) -> Tensor:
        """(Q, K) bool, True where a list has a passage."""
        return self.places >= 0

    def by_list(self, values: Tensor) -> Tensor:
        """Return values (B,) as (Q, K); where a list is shorter they are 0."""
        return values[self.places.clamp(min=0)].masked_fill(~self.inside, 0)

    def mean_of_lists(self, values: Tensor) -> Tensor:
        """Return the mean of values (Q,) over the lists of two passages or more; 0 if there is no such list."""
        compared = self.inside.sum(1) > 1
        return (values * compared).sum() / compared.sum().clamp(min=1)


class RankingLoss(Weighted, ABC):
    """One loss of a reranker. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        reads_teacher: whether it reads the scores of a teacher.
        reads_labels: whether it reads labels.
        compares: whether it compares the passages of a list, so that a list of one passage has nothing to teach.
    """

    reads_teacher: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    @abstractmethod
    def value(self, batch: RankedBatch) -> Tensor:
        """Return the loss of a batch without its weight, a scalar."""


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
