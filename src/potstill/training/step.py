"""One micro-batch, masked already: run teacher and student, return the named losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.objective import Objective
from potstill.student import family_of
from potstill.student.tensors import cast_parameters
from potstill.training.checkpoints import load_modules, save_modules
from potstill.training.graphs import Graphed
from potstill.training.predictor import Predictor

# Devices whose kernels sum the gradients of 16-bit LayerNorms and embeddings in float32. A CPU's sum in 16 bits, and
# lose what is added once the sum is some hundred times larger.
EXACT_SUMS = ("cuda",)


class DistillationStep(nn.Module):
    """The module that training runs and wraps for data parallelism.

    Its forward is the whole of a step short of the backward pass, so that no logits need leave it. Its parameters are
    the student's and those that the objective trains besides: the teacher is kept out of the module tree, where neither
    the optimiser nor DistributedDataParallel nor a checkpoint would see it.

    Under autocast the teacher, and on a GPU the student too, compute in its type from end to end, on copies of their
    parameters in that type. Autocast itself would keep LayerNorm and all that is added to it in float32, and spend the
    time moving twice the bytes. The parameters that are trained stay in float32, and so do sums inside LayerNorm,
    softmax and the losses.

    Args:
        student: the model in training.
        teacher: put in eval mode and frozen; None to train without one.
        objective: turns what both make of a batch into losses.
        seed: decides the initial weights of what the objective trains besides the student.

    Attributes:
        student: as given.
        objective: as given.
        objective_modules: what the objective trains besides the student, by the name of the term; often empty.
        mark: called with the name of each part of the step as it ends; for measuring.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.objective_modules = objective.modules(
            teacher.config if teacher is not None else None, student.config, seed
        )
        self.mark: Callable[[str], None] = _ignore
        self._predict_student = Predictor(student, objective.student_reads)
        self._teacher: tuple[PreTrainedModel, ...] = ()
        if teacher is not None:
            self._teacher = (teacher.eval().requires_grad_(False),)
        self._teacher_predictors: dict[torch.dtype | None, Predictor] = {}
        self._compiled_values: dict[str, Any] = {}
        self._compile_options: dict[str, Any] | None = None
        self._graphed: Graphed | None = None

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
        return (self._graphed or self._losses)(input_ids, positions, labels)

    def _losses(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        device = input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        teacher = None
        if self._teacher and self.objective.needs_teacher:
            with torch.no_grad(), torch.autocast(device, enabled=False):
                teacher = self._teacher_in(dtype)(input_ids)
            self.mark("teacher")
        # Activations that are recomputed would see the parameters themselves, not the copies: autocast bridges that.
        copied = dtype if device in EXACT_SUMS and not self._predict_student.recomputes else None
        with torch.autocast(device, enabled=dtype is not None and copied is None, dtype=dtype):
            student = self._predict_student(input_ids, copied)
            self.mark("student")
            losses = self.objective(student, teacher, positions, labels, self.objective_modules, self._compiled_values)
            self.mark("losses")
        return losses

    def compile_parts(self, **options: Any) -> None:
        """Compile what a step runs, with the options of `torch.compile`."""
        self._compile_options = options
        self._compiled_values = self.objective.compiled(**options)
        self._predict_student.compile(**options)
        self._teacher_predictors.clear()

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

    def _teacher_in(self, dtype: torch.dtype | None) -> Predictor:
        """Return what runs the teacher in a type; another one than its own is a copy, for it is the user's model."""
        if dtype not in self._teacher_predictors:
            (teacher,) = self._teacher
            if dtype is not None:
                teacher = copy.deepcopy(teacher)
                cast_parameters(teacher, dtype)
                if teacher.device.type == "cuda":
                    family_of(teacher).fuse_gelu(teacher)
            predictor = Predictor(teacher, self.objective.teacher_reads)
            if self._compile_options is not None:
                predictor.compile(**self._compile_options)
            self._teacher_predictors[dtype] = predictor
        return self._teacher_predictors[dtype]


def _ignore(part: str) -> None:
    pass
