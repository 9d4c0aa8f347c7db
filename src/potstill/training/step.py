"""One micro-batch, masked already: run teacher and student, return the named losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.objective import DistillationObjective, Predictions
from potstill.student import family_of


class DistillationStep(nn.Module):
    """The module that training runs, compiles and wraps for data parallelism.

    Its forward is the whole of a step short of the backward pass, so that no logits need leave it, and its only
    parameters are the student's: the teacher is kept out of the module tree, where neither the optimiser nor
    DistributedDataParallel nor a checkpoint would see it.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: DistillationObjective,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self._teacher = (teacher.eval().requires_grad_(False),) if teacher is not None else ()
        self._families = [family_of(student)] + [family_of(model) for model in self._teacher]

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher, in eval mode; None when training without one."""
        return self._teacher[0] if self._teacher else None

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar.

        Args:
            input_ids: (B, L) int64, masked blocks.
            positions: (B, K) int64, where they are masked.
            labels: (B, K) int64, the original tokens there, -100 where there is none to predict.
        """
        teacher = None
        if self._teacher and self.objective.needs_teacher:
            with torch.no_grad():
                teacher = self.predict(self._teacher[0], self._families[1], input_ids)
        student = self.predict(self.student, self._families[0], input_ids)
        return self.objective(student, teacher, positions, labels)

    @staticmethod
    def predict(model: PreTrainedModel, family: Any, input_ids: Tensor) -> Predictions:
        """Run a model's encoder over (B, L) blocks without padding; its head is left to the objective."""
        return Predictions(hidden=family.encode(model, input_ids), head=family.head(model))

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Trade time for memory in the student, as `TrainingArguments` asks."""
        self.student.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trade time for memory in the student, as newer `TrainingArguments` ask."""
        self.student.activation_checkpointing_enable(**options)
