"""The triple loss of DistilBERT (Sanh et al. 2019, section 2): soft targets, masked LM, hidden-state cosine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import PotstillError
from potstill.objective.vocabulary import vocabulary_losses
from potstill.student import VocabularyHead

SoftTargets = Literal["all", "masked"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of a batch, short of its logits: (B, L, H) last hidden states and the head that turns them."""

    hidden: Tensor
    head: VocabularyHead


def hidden_cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over tokens of 1 − cos, in float32 or wider, of two (B, L, H) tensors of hidden states."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return 1 - F.cosine_similarity(student.to(dtype), teacher.to(dtype), dim=-1).mean()


@dataclass(frozen=True)
class DistillationObjective:
    """L = alpha_ce · L_ce + alpha_mlm · L_mlm + alpha_cos · L_cos, the weights not normalised.

    - L_ce: KL(teacher ‖ student) of both softmaxes at ``temperature`` T, summed over the vocabulary, averaged over the
      selected tokens, times T² (Hinton et al. 2015), so that its gradient keeps its size when T changes.
    - L_mlm: cross-entropy at the masked tokens, at temperature 1.
    - L_cos: mean over all tokens of 1 − cos(student hidden state, teacher hidden state).

    A term with weight 0 is neither computed nor returned.

    Args:
        alpha_ce: weight of the soft targets (5.0 in the released DistilBERT).
        alpha_mlm: weight of masked LM (2.0).
        alpha_cos: weight of the hidden-state cosine (1.0).
        temperature: T of the soft targets (2.0).
        soft_targets: tokens that L_ce averages over: ``all`` of a block, [CLS] and [SEP] included, or ``masked`` ones.

    Raises:
        PotstillError: a negative weight, all weights 0, or a temperature that is not positive.
    """

    alpha_ce: float = 5.0
    alpha_mlm: float = 2.0
    alpha_cos: float = 1.0
    temperature: float = 2.0
    soft_targets: SoftTargets = "all"

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("alpha_ce", "alpha_mlm", "alpha_cos")}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise PotstillError(f"--{name} is {weight}: a loss weight must be 0 or more.")
        if not any(weights.values()):
            raise PotstillError("--alpha_ce, --alpha_mlm and --alpha_cos are all 0: there is nothing to learn from.")
        if not 0 < self.temperature < float("inf"):
            raise PotstillError(f"--temperature is {self.temperature}: it must be above 0 (DistilBERT uses 2).")
        if self.soft_targets not in ("all", "masked"):
            raise PotstillError(f"--soft_targets is {self.soft_targets!r}: it must be 'all' or 'masked'.")

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher; without one the teacher need not run."""
        return self.alpha_ce > 0 or self.alpha_cos > 0

    def __call__(
        self,
        student: Predictions,
        teacher: Predictions | None,
        positions: Tensor,
        labels: Tensor,
        hidden_cosine: Callable[[Tensor, Tensor], Tensor] = hidden_cosine_loss,
    ) -> dict[str, Tensor]:
        """Return the named losses of a batch, each a float32 scalar; ``loss``, their weighted sum, has a gradient.

        The averages are over counts that are the same for every batch (all tokens; K masked tokens a block), so the
        mean over micro-batches is the loss of the whole batch, however it is split.

        Args:
            student: of a batch of B blocks of L tokens.
            teacher: of the same batch; may be None if no term needs it.
            positions: (B, K) int64, the masked positions of each block.
            labels: (B, K) int64, the original tokens there, -100 where there is none to predict.
            hidden_cosine: what computes L_cos; a compiled version of `hidden_cosine_loss`, say.
        """
        losses: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        if self.alpha_ce > 0 or self.alpha_mlm > 0:
            losses = vocabulary_losses(
                student.hidden,
                student.head,
                teacher.hidden if teacher else None,
                teacher.head if teacher else None,
                positions,
                labels,
                alpha_ce=self.alpha_ce,
                alpha_mlm=self.alpha_mlm,
                temperature=self.temperature,
                soft_targets=self.soft_targets,
            )
            parts.append(losses.pop("loss"))
        if self.alpha_cos > 0:
            assert teacher is not None
            cosine = hidden_cosine(student.hidden, teacher.hidden)
            losses["cos"] = cosine.detach()
            parts.append(self.alpha_cos * cosine)
        return {"loss": torch.stack(parts).sum(), **losses}
