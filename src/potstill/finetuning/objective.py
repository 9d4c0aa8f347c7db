"""What a task model is trained on: labels, and where there is a task teacher its soft targets and hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SoftPositions = Literal["answer", "all"]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class TaskObjective:
    """Weights of the losses; their sum is what is minimised.

    Without a teacher it is the task's own loss alone, unweighted: cross-entropy, or for a regression the squared error.

    Attributes:
        alpha_ce: of the soft targets: KL(teacher ‖ student) at `temperature`, times temperature², mean over rows
            (Hinton et al. 2015); for a regression the squared difference of the two scores.
        alpha_task: of the labels.
        alpha_cos: of 1 − cosine of the last hidden states, mean over tokens.
        temperature: of both softmaxes.
        soft_positions: the tokens of a window that the soft targets of a span are over: those that an answer may start
            or end at, or all, question and special tokens included.
    """

    alpha_ce: float = 0.5
    alpha_task: float = 0.5
    alpha_cos: float = 0.0
    temperature: float = 2.0
    soft_positions: SoftPositions = "answer"

    def sum_up(self, losses: Losses) -> Losses:
        """Add `loss`, the one to minimise, to the named terms, and detach those.

        Args:
            losses: `task`, and with a teacher `ce` and perhaps `cos`, scalars.
        """
        if len(losses) == 1:
            return {"loss": losses["task"]}
        weights = {"task": self.alpha_task, "ce": self.alpha_ce, "cos": self.alpha_cos}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}

    def sentence(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Losses:
        """Return the terms for sentences.

        Args:
            logits: (B, C) of the student, or (B, 1) scores.
            labels: (B,) int64 classes, or float scores.
            teacher: like `logits`.
        """
        logits = _exact(logits)
        if labels.is_floating_point():
            scores = logits.squeeze(1)
            losses = {"task": F.mse_loss(scores, labels.to(scores.dtype))}
            if teacher is not None:
                losses["ce"] = F.mse_loss(scores, _exact(teacher).squeeze(1))
            return losses
        losses = {"task": F.cross_entropy(logits, labels)}
        if teacher is not None:
            losses["ce"] = self._divergence(logits, _exact(teacher), torch.ones_like(logits, dtype=torch.bool))
        return losses

    def span(
        self,
        logits: tuple[Tensor, Tensor],
        labels: tuple[Tensor, Tensor],
        inside: Tensor,
        answerable: Tensor,
        teacher: tuple[Tensor, Tensor] | None = None,
    ) -> Losses:
        """Return the terms for windows, each the mean of those of start and end.

        Args:
            logits: (B, L) of the student, of start and of end.
            labels: (B,) int64 positions.
            inside: (B, L) bool, False for padding, which takes no part.
            answerable: (B, L) bool, where an answer may start or end.
            teacher: like `logits`.
        """
        task, soft = [], []
        positions = answerable if self.soft_positions == "answer" else inside
        for place, (student, label) in enumerate(zip(logits, labels, strict=True)):
            student = _exact(student)
            task.append(F.cross_entropy(student.masked_fill(~inside, -torch.inf), label))
            if teacher is not None:
                soft.append(self._divergence(student, _exact(teacher[place]), positions))
        losses = {"task": torch.stack(task).mean()}
        return losses if teacher is None else losses | {"ce": torch.stack(soft).mean()}

    def hidden(self, student: Tensor, teacher: Tensor, inside: Tensor) -> Tensor:
        """Return 1 − cosine of (B, L, H) hidden states, mean over the tokens that are no padding, (B, L) bool."""
        each = 1 - F.cosine_similarity(_exact(student), _exact(teacher), dim=-1)
        return (each * inside).sum() / inside.sum()

    def _divergence(self, student: Tensor, teacher: Tensor, positions: Tensor) -> Tensor:
        """Return the mean over rows of KL(teacher ‖ student) · T² between softmaxes over the positions of each row."""
        log_p, log_q = (
            (logits / self.temperature).masked_fill(~positions, -torch.inf).log_softmax(dim=1)
            for logits in (teacher, student)
        )
        # At -inf both terms are 0, in value and gradient, which inf - inf and 0 · inf are not.
        terms = log_p.exp() * (log_p - log_q).masked_fill(~positions, 0.0)
        return terms.sum() / len(student) * self.temperature**2


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
