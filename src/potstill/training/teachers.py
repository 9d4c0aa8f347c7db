"""The frozen models that a student learns from: how each is run, and which share of a step's time it takes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.bench.clock import PartClock
from potstill.objective import Encoded
from potstill.student import Reads, family_of
from potstill.training.predictor import Predictor

if TYPE_CHECKING:
    from potstill.training.step import DistillationStep

SKIPPED_STEPS, MEASURED_STEPS = 2, 10
"""The first steps of a session compile and record; those after them are measured."""

OneOrMore: TypeAlias = PreTrainedModel | Sequence[PreTrainedModel] | None


def as_tuple(teacher: OneOrMore) -> tuple[PreTrainedModel, ...]:
    """Return the teachers in order, none for None."""
    if teacher is None:
        return ()
    return (teacher,) if isinstance(teacher, PreTrainedModel) else tuple(teacher)


def name_of_teacher(teacher: PreTrainedModel | str, number: int) -> str:
    """Return the folder or hub name of a teacher, or else its number, which is counted from 0."""
    name = teacher if isinstance(teacher, str) else getattr(teacher, "name_or_path", "")
    return name or f"teacher {number + 1}"


class FrozenTeacher:
    """Runs a teacher in the type of the step.

    Args:
        model: put in eval mode and frozen.
        reads: what is kept of its states.
    """

    def __init__(self, model: PreTrainedModel, reads: Reads) -> None:
        self.model = model.eval().requires_grad_(False)
        self._reads = reads
        self._predictors: dict[torch.dtype | None, Predictor] = {}
        self._compile_options: dict[str, Any] | None = None

    def compile(self, **options: Any) -> None:
        """Compile the layers, with the options of `torch.compile`."""
        self._compile_options = options
        self._predictors.clear()

    def __call__(self, input_ids: Tensor, dtype: torch.dtype | None) -> Encoded:
        """Run the encoder over (B, L) blocks, in a type: another one than its own is a copy of the user's model."""
        if dtype not in self._predictors:
            model = self.model
            if dtype is not None:
                model = copy.deepcopy(model).to(dtype)
                if model.device.type == "cuda":
                    family_of(model).fuse_gelu(model)
            predictor = Predictor(model, self._reads)
            if self._compile_options is not None:
                predictor.compile(**self._compile_options)
            self._predictors[dtype] = predictor
        return self._predictors[dtype](input_ids)


class Time(NamedTuple):
    """What a teacher takes of a step of the optimiser.

    Attributes:
        seconds: median over the measured steps.
        share: of the step's seconds, likewise.
    """

    seconds: float
    share: float


class TeacherTimes(TrainerCallback):
    """Measures what each teacher takes of a step, in the run itself: ten steps, from the third of a session on.

    On a GPU these steps are run as they are, not replayed as CUDA graphs, and the device is waited for after each.

    Args:
        step: whose teachers are measured.
        device: of the run.
    """

    def __init__(self, step: DistillationStep, device: torch.device) -> None:
        self._step = step
        self._device = device
        self._seen = 0
        self._clocks: list[PartClock] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock if the step is to be measured."""
        self._seen += 1
        if SKIPPED_STEPS < self._seen <= SKIPPED_STEPS + MEASURED_STEPS:
            clock = PartClock(self._device)
            self._clocks.append(clock)
            self._step.mark, self._step.replays = clock.mark, False
            clock.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        if not self._step.replays:
            self._clocks[-1].stop()
            self._step.mark, self._step.replays = ignore, True

    def measured(self) -> list[Time] | None:
        """Return the time of each teacher; None if no step was measured."""
        whole = [sum(clock.rounds) for clock in self._clocks]
        if not whole:
            return None
        times = []
        for part in parts_of(len(self._step.teachers)):
            seconds = [clock.parts.get(part, 0.0) for clock in self._clocks]
            shares = [mine / all_of_it for mine, all_of_it in zip(seconds, whole, strict=True)]
            times.append(Time(statistics.median(seconds), statistics.median(shares)))
        return times


def parts_of(count: int) -> list[str]:
    """Return what the parts of a step are called in which so many teachers run."""
    return ["teacher"] if count == 1 else [f"teacher {number + 1}" for number in range(count)]


def ignore(part: str) -> None:
    """Mark nothing."""
