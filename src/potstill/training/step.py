"""One masked micro-batch: run teachers and student, and return the named losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.objective import Ensemble, Objective
from potstill.training.checkpoints import load_modules, save_modules
from potstill.training.graphs import Graphed
from potstill.training.predictor import Predictor
from potstill.training.teachers import FrozenTeacher, OneOrMore, as_tuple, ignore, teacher_parts

# Devices whose kernels sum the gradients of 16-bit LayerNorms and embeddings in float32. The kernels of a CPU sum in 16
# bits. There a summand is lost when the sum is some hundred times larger.
FLOAT32_SUMS = ("cuda",)


class DistillationStep(nn.Module):
    """The module that training runs and wraps for data parallelism.

    Its forward does a whole step except the backward pass, so that it never has to return logits. Its parameters are
    those of the student and of the modules that the objective trains. Teachers are outside the module tree, so the
    optimiser, DistributedDataParallel and checkpoints do not include them.

    Under autocast, teachers compute in the autocast type throughout, on copies of their parameters in that type. On a
    GPU the student does the same. Autocast itself would keep LayerNorm and the values added to it in float32, and move
    twice as many bytes. Trained parameters stay in float32, and so do sums inside LayerNorm, softmax and the losses.

    Args:
        student: the model in training.
        teacher: one model or several, put in eval mode and frozen; None to train without one.
        objective: computes losses from the states of all models.
        seed: decides the initial weights of the modules that the objective trains.
        ensemble: how several teachers are averaged; with equal weights if not given.

    Attributes:
        student: as given.
        objective: as given.
        objective_modules: modules that the objective trains besides the student, by the name of the term; often empty.
        ensemble: how several teachers are averaged.
        mark: called at the end of each part of the step with the name of the part, for measurements.
        replays: whether to replay a recorded step. A replay does not call `mark`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: OneOrMore,
        objective: Objective,
        seed: int = 0,
        ensemble: Ensemble | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        teachers = as_tuple(teacher)
        self.ensemble = ensemble or Ensemble.of(len(teachers))
        self.objective_modules = objective.modules([one.config for one in teachers], student.config, seed)
        self.mark: Callable[[str], None] = ignore
        self.replays = True
        self._predict_student = Predictor(student, objective.student_reads)
        self._teachers = tuple(FrozenTeacher(one, objective.teacher_reads) for one in teachers)
        self._compiled_values: dict[str, Any] = {}
        self._graphed: Graphed | None = None

    @property
    def teachers(self) -> tuple[PreTrainedModel, ...]:
        """The frozen teachers, in eval mode; none when training without one."""
        return tuple(teacher.model for teacher in self._teachers)

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The first teacher; None when training without one."""
        return self.teachers[0] if self._teachers else None

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar.

        Args:
            input_ids: (B, L) int64, masked blocks.
            positions: (B, K) int64, the masked positions.
            labels: (B, K) int64, the original tokens at these positions, or -100 where nothing is predicted.
        """
        run = self._graphed if self._graphed is not None and self.replays else self._losses
        return run(input_ids, positions, labels)

    def _losses(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        device = input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        teachers = []
        if self.objective.needs_teacher:
            for teacher, part in zip(self._teachers, teacher_parts(len(self._teachers)), strict=True):
                with torch.no_grad(), torch.autocast(device, enabled=False):
                    teachers.append(teacher(input_ids, dtype))
                self.mark(part)
        # Recomputed activations would use the parameters themselves, not the copies. Then autocast does the casts.
        copied = dtype if device in FLOAT32_SUMS and not self._predict_student.recomputes else None
        with torch.autocast(device, enabled=dtype is not None and copied is None, dtype=dtype):
            student = self._predict_student(input_ids, copied)
            self.mark("student")
            losses = self.objective(
                student, teachers, positions, labels, self.objective_modules, self._compiled_values, self.ensemble
            )
            self.mark("losses")
        return losses

    def compile_parts(self, **options: Any) -> None:
        """Compile the parts of a step, with the options of `torch.compile`."""
        self._compiled_values = self.objective.compiled(**options)
        self._predict_student.compile(**options)
        for teacher in self._teachers:
            teacher.compile(**options)

    def record_graphs(self) -> None:
        """Replay each step, its backward pass included, as one CUDA graph."""
        self._graphed = Graphed(self._losses, lambda: list(self.parameters()))

    def refresh(self) -> None:
        """Look up the parameters of the student again: others may have replaced them since the last call."""
        self._predict_student.refresh()
        if self._graphed is not None:
            self._graphed.clear()

    def save_objective(self, folder: str | Path) -> None:
        """Write the modules that the objective trains into a checkpoint. Write no file if there are none."""
        save_modules(self.objective_modules, folder)

    def load_objective(self, folder: str | Path) -> None:
        """Read what `save_objective` wrote.

        Raises:
            PotstillError: the file was written with other losses than those of this objective, or cannot be read.
        """
        load_modules(self.objective_modules, folder)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Make the student recompute activations to save memory, as `TrainingArguments` requests."""
        self.student.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Make the student recompute activations to save memory, as newer `TrainingArguments` request."""
        self.student.activation_checkpointing_enable(**options)
