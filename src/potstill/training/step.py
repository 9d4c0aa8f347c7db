"""One micro-batch, masked already: run teachers and student, return the named losses."""

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
from potstill.training.teachers import FrozenTeacher, OneOrMore, as_tuple, ignore, parts_of

# Devices whose kernels sum the gradients of 16-bit LayerNorms and embeddings in float32. A CPU's sum in 16 bits, and
# lose what is added once the sum is some hundred times larger.
EXACT_SUMS = ("cuda",)


class DistillationStep(nn.Module):
    """The module that training runs and wraps for data parallelism.

    Its forward is the whole of a step short of the backward pass, so that no logits need leave it. Its parameters are
    the student's and those that the objective trains besides: teachers are kept out of the module tree, where neither
    the optimiser nor DistributedDataParallel nor a checkpoint would see it.

    Under autocast teachers, and on a GPU the student too, compute in its type from end to end, on copies of their
    parameters in that type. Autocast itself would keep LayerNorm and all that is added to it in float32, and spend the
    time moving twice the bytes. The parameters that are trained stay in float32, and so do sums inside LayerNorm,
    softmax and the losses.

    Args:
        student: the model in training.
        teacher: one model or several, put in eval mode and frozen; None to train without one.
        objective: turns what both make of a batch into losses.
        seed: decides the initial weights of what the objective trains besides the student.
        ensemble: how several teachers become one; by equal weights if not given.

    Attributes:
        student: as given.
        objective: as given.
        objective_modules: what the objective trains besides the student, by the name of the term; often empty.
        ensemble: how several teachers become one.
        mark: called with the name of each part of the step as it ends; for measuring.
        replays: whether a step that was recorded is replayed; inside of a replay no part of it is marked.
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
            positions: (B, K) int64, where they are masked.
            labels: (B, K) int64, the original tokens there, -100 where there is none to predict.
        """
        run = self._graphed if self._graphed is not None and self.replays else self._losses
        return run(input_ids, positions, labels)

    def _losses(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        device = input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        taught = []
        if self.objective.needs_teacher:
            for teacher, part in zip(self._teachers, parts_of(len(self._teachers)), strict=True):
                with torch.no_grad(), torch.autocast(device, enabled=False):
                    taught.append(teacher(input_ids, dtype))
                self.mark(part)
        # Activations that are recomputed would see the parameters themselves, not the copies: autocast bridges that.
        copied = dtype if device in EXACT_SUMS and not self._predict_student.recomputes else None
        with torch.autocast(device, enabled=dtype is not None and copied is None, dtype=dtype):
            student = self._predict_student(input_ids, copied)
            self.mark("student")
            losses = self.objective(
                student, taught, positions, labels, self.objective_modules, self._compiled_values, self.ensemble
            )
            self.mark("losses")
        return losses

    def compile_parts(self, **options: Any) -> None:
        """Compile what a step runs, with the options of `torch.compile`."""
        self._compiled_values = self.objective.compiled(**options)
        self._predict_student.compile(**options)
        for teacher in self._teachers:
            teacher.compile(**options)

    def record_graphs(self) -> None:
        """Replay each step as one CUDA graph, with its backward pass."""
        self._graphed = Graphed(self._losses, lambda: list(self.parameters()))

    def refresh(self) -> None:
        """Take note that parameters of the student may have been replaced by others since the last call."""
        self._predict_student.refresh()
        if self._graphed is not None:
            self._graphed.clear()

    def save_objective(self, folder: str | Path) -> None:
        """Write what the objective trains besides the student into a checkpoint; no file if there is nothing."""
        save_modules(self.objective_modules, folder)

    def load_objective(self, folder: str | Path) -> None:
        """Read what `save_objective` wrote.

        Raises:
            PotstillError: it is of other losses than this objective's, or cannot be read.
        """
        load_modules(self.objective_modules, folder)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Trade time for memory in the student, as `TrainingArguments` asks."""
        self.student.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trade time for memory in the student, as newer `TrainingArguments` ask."""
        self.student.activation_checkpointing_enable(**options)
