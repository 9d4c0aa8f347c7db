"""The frozen models that a student learns from: how each one runs, and how much of a step's time it takes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.objective import Encoded
from potstill.student import Reads, family_of
from potstill.student.fp8 import Fp8, use_fp8
from potstill.student.tensors import cast_parameters
from potstill.training.part_clock import PartClock
from potstill.training.predictor import Predictor
from potstill.training.sharding import shard_teacher

if TYPE_CHECKING:
    from potstill.training.step import DistillationStep

SKIPPED_STEPS, MEASURED_STEPS = 2, 10
"""The first steps of a session compile and record, so they are not measured. The steps after them are."""

OneOrMore: TypeAlias = PreTrainedModel | Sequence[PreTrainedModel] | None


def as_tuple(teacher: OneOrMore) -> tuple[PreTrainedModel, ...]:
    """Return the teachers in order; an empty tuple for None."""
    if teacher is None:
        return ()
    return (teacher,) if isinstance(teacher, PreTrainedModel) else tuple(teacher)


def name_of_teacher(teacher: PreTrainedModel | str, number: int) -> str:
    """Return the folder or hub name of a teacher. If it has none, return its number, counted from 1.

    Args:
        teacher: the teacher.
        number: its number, counted from 0.
    """
    name = teacher if isinstance(teacher, str) else getattr(teacher, "name_or_path", "")
    return name or f"number {number + 1}"


class FrozenTeacher:
    """Runs a teacher in the floating-point type of the step.

    Args:
        model: put in eval mode and frozen.
        reads: the states to keep.
        fp8: which linear layers have 8-bit operands, if any.
    """

    def __init__(self, model: PreTrainedModel, reads: Reads, fp8: Fp8 | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self._fp8 = fp8 if fp8 is not None and fp8.of_role("teacher") else None
        self._reads = reads
        self._predictors: dict[torch.dtype | None, Predictor] = {}
        self._compile_options: dict[str, Any] | None = None
        self._sharded: Predictor | None = None

    def shard(self, device: torch.device, processes: int, dtype: torch.dtype | None) -> None:
        """Shard the model over the processes of the run: see `shard_teacher`. It then always runs in this type."""
        self._sharded = Predictor(self.model, self._reads)
        shard_teacher(self.model, self._sharded.encoder, device, processes, dtype)

    def compile(self, **options: Any) -> None:
        """Compile the layers, with the options of `torch.compile`."""
        self._compile_options = options
        self._predictors.clear()
        if self._sharded is not None:
            self._sharded.compile(**options)

    def __call__(
        self,
        input_ids: Tensor,
        dtype: torch.dtype | None,
        positions: Tensor | None = None,
        sampled: Tensor | None = None,
    ) -> Encoded:
        """Run the encoder over blocks in a type. For another type than its own, a copy of the model runs.

        Args:
            input_ids: (B, L) int64.
            dtype: the type; None for its own.
            positions: (B, K), of the masked tokens; None to read all tokens.
            sampled: (B, S), of the sampled tokens; None if there are none.
        """
        if self._sharded is not None:  # its layers gather their parameters when they are called as a whole
            return self._sharded(input_ids)
        if dtype not in self._predictors:
            model = self.model
            if dtype is not None or self._fp8 is not None:
                model = copy.deepcopy(model)
            if dtype is not None:
                cast_parameters(model, dtype)
                if model.device.type == "cuda":
                    family_of(model).fuse_gelu(model)
            if self._fp8 is not None:
                family = family_of(model)
                after_gelu = () if family.widths is None else family.widths.neurons_in
                use_fp8(family.layers(model), self._fp8, frozen=True, after_gelu=after_gelu)
            predictor = Predictor(model, self._reads)
            if self._compile_options is not None:
                predictor.compile(**self._compile_options)
            self._predictors[dtype] = predictor
        predictor = self._predictors[dtype]
        return predictor(input_ids, at=None if positions is None else predictor.last_at(positions, sampled))


class Time(NamedTuple):
    """The time that a teacher takes in a step of the optimiser.

    Attributes:
        seconds: median over the measured steps.
        share: part of the step's seconds, also a median.
    """

    seconds: float
    share: float


class TeacherTimes(TrainerCallback):
    """Measures the time of each teacher during the run, in ten steps from the third step of a session on.

    These steps are not replayed as CUDA graphs. After each of them the host waits for the GPU.

    Args:
        step: the step whose teachers are measured.
        device: device of the run.
    """

    def __init__(self, step: DistillationStep, device: torch.device) -> None:
        self._step = step
        self._device = device
        self._seen = 0
        self._clocks: list[PartClock] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start a clock if this step is measured."""
        self._seen += 1
        if SKIPPED_STEPS < self._seen <= SKIPPED_STEPS + MEASURED_STEPS:
            clock = PartClock(self._device)
            self._clocks.append(clock)
            self._step.mark, self._step.replays = clock.mark, False
            clock.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock of a measured step."""
        if not self._step.replays:
            self._clocks[-1].stop()
            self._step.mark, self._step.replays = ignore, True

    def measured(self) -> list[Time] | None:
        """Return the time of each teacher; None if no step was measured."""
        whole = [sum(clock.rounds) for clock in self._clocks]
        if not whole:
            return None
        times = []
        for part in teacher_parts(len(self._step.teachers)):
            seconds = [clock.parts.get(part, 0.0) for clock in self._clocks]
            shares = [of_teacher / of_step for of_teacher, of_step in zip(seconds, whole, strict=True)]
            times.append(Time(statistics.median(seconds), statistics.median(shares)))
        return times


def teacher_parts(count: int) -> list[str]:
    """Return the names of the parts of a step in which the teachers run, given their number."""
    return ["teacher"] if count == 1 else [f"teacher {number + 1}" for number in range(count)]


def ignore(part: str) -> None:
    """Do nothing at the end of a part."""
