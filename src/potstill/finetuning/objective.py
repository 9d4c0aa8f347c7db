"""The losses of a task model: on labels and, with a task teacher, on its soft targets and hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SoftPositions = Literal["answer", "all"]
SoftLoss = Literal["kl", "mse"]
Losses = dict[str, Tensor]

NO_TAG = -100
"""The label of a token without a tag: a special token, padding, or a later part of a word."""

UNKNOWN_TAG = -1
"""The label of the first token of a word whose tag nobody gave. Only a teacher's soft targets say what it is."""


@dataclass(frozen=True)
class TaskObjective:
    """The weighted sum of the losses, which is minimised.

    Without a teacher it is only the task's own loss, unweighted: cross-entropy, or squared error for a regression.

    Attributes:
        alpha_ce: weight of the soft targets. Their loss is named by `soft_loss`; for a regression it is always the
            squared difference of the two scores.
        alpha_task: weight of the loss on the labels.
        alpha_cos: weight of 1 − cosine of the last hidden states, mean over tokens.
        temperature: temperature of both softmaxes.
        soft_positions: the tokens of a window for the soft targets of a span. `answer`: those where an answer may start
            or end. `all`: all tokens, with question and special tokens.
        soft_loss: `kl`: KL(teacher ‖ student) at `temperature`, times temperature², mean over rows (Hinton et al.
            2015). `mse`: the squared difference of the logits, mean over rows and classes (Tang et al. 2019, section
            3.2); the temperature plays no part in it.
    """

    alpha_ce: float = 0.5
    alpha_task: float = 0.5
    alpha_cos: float = 0.0
    temperature: float = 2.0
    soft_positions: SoftPositions = "answer"
    soft_loss: SoftLoss = "kl"

    def sum_up(self, losses: Losses) -> Losses:
        """Add `loss`, the weighted sum, to the named losses, and detach the named losses.

        Args:
            losses: scalars: `task`, and with a teacher `ce` and perhaps `cos`.
        """
        if len(losses) == 1:
            return {"loss": losses["task"]}
        weights = {"task": self.alpha_task, "ce": self.alpha_ce, "cos": self.alpha_cos}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}

    def sentence(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> Losses:
        """Return the losses for sentences.

        Both losses are means over all rows of the batch. The loss on the label of a row without a label is 0. So every
        row counts the same. A mean over the labelled rows alone would let few labels outweigh many soft targets.

        Args:
            logits: (B, C) logits of the student, or (B, 1) scores.
            labels: (B,) int64 classes, or float scores; -100 or NaN in rows without a label.
            teacher: the teacher's logits, in the same shape.
            class_weights: (C,) factor of the cross-entropy of rows with this label; None for 1.
        """
        logits = _exact(logits)
        if labels.is_floating_point():
            scores = logits.squeeze(1)
            known = ~labels.isnan()
            errors = torch.where(known, scores - labels.to(scores.dtype).masked_fill(~known, 0.0), 0.0).square()
            losses = {"task": errors.mean()}
            if teacher is not None:
                losses["ce"] = F.mse_loss(scores, _exact(teacher).squeeze(1))
            return losses
        each = F.cross_entropy(logits, labels, reduction="none")  # 0 for the label -100
        if class_weights is not None:
            each = each * class_weights[labels.clamp(min=0)]
        losses = {"task": each.mean()}
        if teacher is not None:
            losses["ce"] = self._soft(logits, _exact(teacher), torch.ones_like(logits, dtype=torch.bool))
        return losses

    def labels(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> Losses:
        """Return the losses for sentences with several labels: binary cross-entropy, mean over rows and labels.

        The soft targets are the teacher's probability of each label at `temperature`. Their loss is the divergence of
        the two Bernoulli distributions, times temperature², mean over rows and labels; or, for `mse`, the squared
        difference of the logits.

        Args:
            logits: (B, C) logits of the student.
            labels: (B, C) of 0 and 1; NaN in rows without labels.
            teacher: the teacher's logits, in the same shape.
            class_weights: (C,) factor of the loss where a label is 1; None for 1.
        """
        logits = _exact(logits)
        known = ~labels.isnan()
        targets = labels.to(logits.dtype).masked_fill(~known, 0.0)
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=class_weights)
        losses = {"task": (each * known).mean()}
        if teacher is not None and self.soft_loss == "mse":
            losses["ce"] = F.mse_loss(logits, _exact(teacher))
        elif teacher is not None:
            student, expected = logits / self.temperature, _exact(teacher) / self.temperature
            wanted = expected.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(expected, wanted)
            divergence = F.binary_cross_entropy_with_logits(student, wanted) - entropy
            losses["ce"] = divergence * self.temperature**2
        return losses

    def tags(
        self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None, class_weights: Tensor | None = None
    ) -> Losses:
        """Return the losses for tags of words, each a mean over the words of the batch.

        The loss on the tag of a word whose tag is not known is 0, so that every word counts the same: see `sentence`.

        Args:
            logits: (B, L, C) logits of the student.
            labels: (B, L) int64 tags; `NO_TAG` at tokens without one, which are ignored; `UNKNOWN_TAG` at the first
                token of a word that has only soft targets.
            teacher: the teacher's logits, in the same shape.
            class_weights: (C,) factor of the cross-entropy of tokens with this tag; None for 1.
        """
        student, inside = _exact(logits), labels != NO_TAG
        count = inside.sum().clamp(min=1)
        known = labels.masked_fill(labels < 0, NO_TAG).flatten()
        every = F.cross_entropy(student.flatten(0, 1), known, ignore_index=NO_TAG, reduction="none")
        if class_weights is not None:
            every = every * class_weights[known.clamp(min=0)]
        losses = {"task": every.sum() / count}
        if teacher is not None and self.soft_loss == "mse":
            each = (student - _exact(teacher)).square().mean(dim=-1)
            losses["ce"] = (each * inside).sum() / count
        elif teacher is not None:
            log_p, log_q = ((of / self.temperature).log_softmax(dim=-1) for of in (_exact(teacher), student))
            each = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
            losses["ce"] = (each * inside).sum() / count * self.temperature**2
        return losses

    def span(
        self,
        logits: tuple[Tensor, Tensor],
        labels: tuple[Tensor, Tensor],
        inside: Tensor,
        answerable: Tensor,
        teacher: tuple[Tensor, Tensor] | None = None,
    ) -> Losses:
        """Return the losses for windows, each the mean of the loss of the start and the loss of the end.

        Args:
            logits: start and end logits of the student, (B, L) each.
            labels: start and end positions, (B,) int64 each.
            inside: (B, L) bool, False for padding, which is ignored.
            answerable: (B, L) bool, True where an answer may start or end.
            teacher: the teacher's logits, in the same shapes.
        """
        task, soft = [], []
        positions = answerable if self.soft_positions == "answer" else inside
        for place, (student, label) in enumerate(zip(logits, labels, strict=True)):
            student = _exact(student)
            task.append(F.cross_entropy(student.masked_fill(~inside, -torch.inf), label))
            if teacher is not None:
                soft.append(self._soft(student, _exact(teacher[place]), positions))
        losses = {"task": torch.stack(task).mean()}
        return losses if teacher is None else losses | {"ce": torch.stack(soft).mean()}

    def hidden(self, student: Tensor, teacher: Tensor, inside: Tensor) -> Tensor:
        """Return the mean of 1 − cosine of hidden states (B, L, H) over the tokens where `inside` (B, L) is True."""
        each = 1 - F.cosine_similarity(_exact(student), _exact(teacher), dim=-1)
        return (each * inside).sum() / inside.sum()

    def _soft(self, student: Tensor, teacher: Tensor, positions: Tensor) -> Tensor:
        """Return the loss of soft targets over the positions of each row, mean over rows."""
        if self.soft_loss == "kl":
            return self._divergence(student, teacher, positions)
        each = (student - teacher).square().masked_fill(~positions, 0.0)
        return (each.sum(dim=1) / positions.sum(dim=1).clamp(min=1)).mean()

    def _divergence(self, student: Tensor, teacher: Tensor, positions: Tensor) -> Tensor:
        """Return the mean over rows of KL(teacher ‖ student) · T² between softmaxes over the positions of each row."""
        log_p, log_q = (
            (logits / self.temperature).masked_fill(~positions, -torch.inf).log_softmax(dim=1)
            for logits in (teacher, student)
        )
        # Where both are -inf, value and gradient must be 0; without the mask, inf - inf and 0 · inf would give NaN.
        terms = log_p.exp() * (log_p - log_q).masked_fill(~positions, 0.0)
        return terms.sum() / len(student) * self.temperature**2


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
