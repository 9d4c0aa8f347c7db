"""The losses of rerankers, and their weighted sum. A new loss is a new file and an entry in `RANKING_LOSSES`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.objective.losses import read_losses
from potstill.objective.ranking.labels import Labels
from potstill.objective.ranking.list_kl import ListKL
from potstill.objective.ranking.loss import RankedBatch, RankingLoss, wide
from potstill.objective.ranking.margin_mse import MarginMSE
from potstill.objective.ranking.score_mse import ScoreMSE

__all__ = ["RANKING_LOSSES", "Labels", "ListKL", "MarginMSE", "RankedBatch", "RankingLoss", "RankingObjective"]
__all__ += ["ScoreMSE"]

RANKING_LOSSES: dict[str, type[RankingLoss]] = {loss.name: loss for loss in (Labels, ScoreMSE, MarginMSE, ListKL)}

ALONE, TAUGHT = {"labels": 1.0}, {"margin_mse": 1.0}
"""The losses if none are given: without a teacher, and with one."""


@dataclass(frozen=True)
class RankingObjective:
    """The weighted sum of the losses of a reranker, which is minimised.

    Attributes:
        losses: the losses whose weight is above 0.
    """

    losses: tuple[RankingLoss, ...]

    @classmethod
    def read(cls, losses: Any, taught: bool) -> RankingObjective:
        """Return the objective that `--losses` describes; see `ALONE` and `TAUGHT` if it is None.

        Args:
            losses: a mapping from the name of each loss to its weight or to a mapping of its options.
            taught: whether there is a teacher.

        Raises:
            PotstillError: a loss or an option is unknown or not valid, all weights are 0, a loss needs a teacher and
                there is none, or there is a teacher and no loss reads it.
        """
        losses = losses if losses is not None else TAUGHT if taught else ALONE
        read: Any = read_losses(losses, RANKING_LOSSES, "{margin_mse: 1, labels: 0.5}")
        used = tuple(loss for loss in read if loss.weight > 0)
        if not used:
            raise PotstillError("losses: no loss has a weight above 0, so there is nothing to learn from.")
        of_teacher = [loss.name for loss in used if loss.reads_teacher]
        if of_teacher and not taught:
            raise PotstillError(f"losses: {of_teacher[0]} compares with a teacher: name one with --teacher.")
        if taught and not of_teacher:
            known = ", ".join(name for name, loss in RANKING_LOSSES.items() if loss.reads_teacher)
            raise PotstillError(f"losses: none of them reads the scores of the teacher: give one of {known}.")
        return cls(used)

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The losses with their options, in the form of `losses:` in a recipe."""
        return {loss.name: loss.options() for loss in self.losses}

    @property
    def reads_labels(self) -> bool:
        """Whether a loss reads labels."""
        return any(loss.reads_labels for loss in self.losses)

    @property
    def only_compares(self) -> bool:
        """Whether every loss compares the passages of a list."""
        return all(loss.compares for loss in self.losses)

    def __call__(self, logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the named losses of a batch, and `loss`, their weighted sum.

        Args:
            logits: (B, 1) scores of the model in training.
            batch: `places`, (Q, K), and perhaps `soft` and `labels`, (B,): see `RankedBatch`.
        """
        scores = wide(logits.squeeze(1))
        teacher, relevant = (batch[name].to(scores.dtype) if name in batch else None for name in ("soft", "labels"))
        ranked = RankedBatch(scores, batch["places"], teacher, relevant)
        values = {loss.name: loss.value(ranked) for loss in self.losses}
        loss = torch.stack([loss.weight * values[loss.name] for loss in self.losses]).sum()
        if len(values) == 1:
            return {"loss": loss}
        return {"loss": loss} | {name: value.detach() for name, value in values.items()}
