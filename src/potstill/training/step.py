"""One masked micro-batch: run teachers and student, and return the named losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from potstill.objective import Encoded, Ensemble, Objective
from potstill.student import family_of
from potstill.student.fp8 import Fp8, use_fp8
from potstill.training.objective_step import ObjectiveStep, autocast_dtype
from potstill.training.predictor import Predictor
from potstill.training.sharding import layer_names
from potstill.training.teachers import FrozenTeacher, OneOrMore, as_tuple, teacher_parts


class DistillationStep(ObjectiveStep):
    """The step of a language model: see `ObjectiveStep`.

    Args:
        student: the model in training.
        teacher: one model or several, put in eval mode and frozen; None to train without one.
        objective: computes losses from the states of all models.
        seed: decides the initial weights of the modules that the objective trains.
        ensemble: how several teachers are averaged; with equal weights if not given.
        fp8: which linear layers have 8-bit operands, if any. Those of the student are replaced.

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
        fp8: Fp8 | None = None,
    ) -> None:
        teachers = as_tuple(teacher)
        modules = objective.modules([one.config for one in teachers], student.config, seed)
        super().__init__(student, objective, modules)
        self.ensemble = ensemble or Ensemble.of(len(teachers))
        if fp8 is not None and fp8.of_role("student"):
            use_fp8(family_of(student).layers(student), fp8, frozen=False)
        self._predict_student = Predictor(student, objective.student_reads)
        self._teachers = tuple(FrozenTeacher(one, objective.teacher_reads, fp8) for one in teachers)

    @property
    def trained(self) -> PreTrainedModel:
        """The student."""
        return self.student

    @property
    def teachers(self) -> tuple[PreTrainedModel, ...]:
        """The frozen teachers, in eval mode; none when training without one."""
        return tuple(teacher.model for teacher in self._teachers)

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The first teacher; None when training without one."""
        return self.teachers[0] if self._teachers else None

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes that `accelerate` shards by themselves."""
        return layer_names(self.student)

    def shard_teachers(self, device: torch.device, processes: int, dtype: torch.dtype | None) -> None:
        """Shard the teachers over the processes of the run; they then run in this type."""
        for teacher in self._teachers:
            teacher.shard(device, processes, dtype)

    def forward(
        self, input_ids: Tensor, positions: Tensor, labels: Tensor, sampled: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar.

        Args:
            input_ids: (B, L) int64, masked blocks.
            positions: (B, K) int64, the masked positions.
            labels: (B, K) int64, the original tokens at these positions, or -100 where nothing is predicted.
            sampled: (B, S) int64, a random sample of the other positions; needed if a loss reads it.
        """
        return self._step(input_ids, positions, labels, *([] if sampled is None else [sampled]))

    @property
    def _recomputes(self) -> bool:
        return self._predict_student.recomputes

    def _losses(self, *inputs: Tensor) -> dict[str, Tensor]:
        input_ids, positions, labels, *sampled = inputs
        dtype = autocast_dtype(input_ids.device.type)
        teachers = []
        if self.objective.needs_teacher:
            for teacher, part in zip(self._teachers, teacher_parts(len(self._teachers)), strict=True):
                with torch.no_grad(), torch.autocast(input_ids.device.type, enabled=False):
                    teachers.append(teacher(input_ids, dtype, positions, *sampled))
                self.mark(part)

        # The layers of a sharded student gather their parameters when they are called as a whole.
        at = None if isinstance(self, FSDPModule) else self._predict_student.last_at(positions, *sampled)

        def run_student(copied: torch.dtype | None) -> Encoded:
            return self._predict_student(input_ids, copied, at)

        return self._compare(run_student, teachers, positions, labels, dtype, self.ensemble, *sampled)

    def compile_parts(self, **options: Any) -> None:
        """Compile the parts of a step, with the options of `torch.compile`."""
        super().compile_parts(**options)
        self._predict_student.compile(**options)
        for teacher in self._teachers:
            teacher.compile(**options)

    def refresh(self) -> None:
        """Look up the parameters of the student again: others may have replaced them since the last call."""
        self._predict_student.refresh()
        super().refresh()
