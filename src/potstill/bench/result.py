"""The measurements of `bench train`, and their report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.bench.flops import StepFlops
from potstill.files import write_text
from potstill.json_files import json_text
from potstill.training.part_clock import PartClock
from potstill.wording import counted

_PART_TITLES = {
    "data": "waiting for data",
    "masking": "masking",
    "teacher": "teacher forward",
    "student": "student forward",
    "losses": "losses",
    "backward": "backward",
    "optimiser": "clip and optimiser",
}


@dataclass(frozen=True)
class Speed:
    """The speed of one training step, potstill's or the plain one.

    Attributes:
        tokens_per_second: over all processes and all measured steps, by the host's clock.
        tokens_per_second_by_round: the same for each round.
        ms_per_step: milliseconds of an optimiser step.
        ms_per_micro_batch: `ms_per_step` divided by the micro-batches of a step. The optimiser's time is included.
        ms_per_step_by_part: milliseconds of each part of a step. Potstill computes the projection onto the vocabulary
            and its gradient in the part `losses`. The plain step computes them in the forward and backward passes.
        batch_size: blocks per device and micro-batch.
        peak_memory_bytes: on a CUDA device the peak memory of tensors during measured steps, on others the largest
            resident size of the process. None if it cannot be measured separately.
    """

    tokens_per_second: float
    tokens_per_second_by_round: list[float]
    ms_per_step: float
    ms_per_micro_batch: float
    ms_per_step_by_part: dict[str, float]
    batch_size: int
    peak_memory_bytes: int | None

    @classmethod
    def of(
        cls,
        clock: PartClock,
        steps_per_round: int,
        micro_batches: int,
        tokens_per_step: int,
        batch_size: int,
        peak_memory_bytes: int | None,
    ) -> Speed:
        """Compute the speed from a clock.

        Args:
            clock: has timed rounds of steps.
            steps_per_round: optimiser steps of a round.
            micro_batches: of a step.
            tokens_per_step: over all processes and micro-batches.
            batch_size: see `Speed`.
            peak_memory_bytes: see `Speed`.
        """
        steps, seconds = steps_per_round * len(clock.rounds), sum(clock.rounds)
        return cls(
            tokens_per_second=steps * tokens_per_step / seconds,
            tokens_per_second_by_round=[steps_per_round * tokens_per_step / seconds for seconds in clock.rounds],
            ms_per_step=1000 * seconds / steps,
            ms_per_micro_batch=1000 * seconds / steps / micro_batches,
            ms_per_step_by_part={part: 1000 * spent / steps for part, spent in clock.parts.items()},
            batch_size=batch_size,
            peak_memory_bytes=peak_memory_bytes,
        )


@dataclass(frozen=True)
class TrainBench:
    """The measurements of `bench train`, with the hardware, the models and the settings.

    `model` is the model in training. `teacher` is None if no teacher is run. `objective` has the losses with their
    options. If steps are `recorded`, the part `backward` is the whole replayed graph. `model_flops_per_second` is the
    rate of all processes; `matrix_product_flops_per_second` is the rate of one device. `ratio_to_baseline` is a median
    over rounds: each ratio divides potstill's tokens per second by the baseline's in the round that followed.

    Blocks of whole texts, for sentence encoders, have `texts_per_block` and `padding`, the share of their tokens that
    is padding. Model FLOPs count none for padding.
    """

    hardware: str
    on_cuda: bool
    processes: int
    dtype: str
    compiled: bool
    recorded: bool
    versions: dict[str, str]
    model: dict[str, Any]
    teacher: dict[str, Any] | None
    objective: dict[str, Any]
    block_size: int
    labelled_per_block: int
    gradient_accumulation_steps: int
    gradient_accumulation_steps_of_recipe: int
    warmup_steps: int
    measured_steps: int
    seconds_to_first_step: float
    speed: Speed
    flops_per_token: StepFlops
    matrix_product_flops_per_second: float
    baseline: Speed | None
    ratio_to_baseline: float | None
    texts_per_block: float | None = None
    padding: float = 0.0

    @property
    def text_tokens_per_second(self) -> float:
        """Tokens of text per second, over all processes: without padding."""
        return self.speed.tokens_per_second * (1 - self.padding)

    @property
    def model_flops_per_second(self) -> float:
        """Model FLOPs of all processes per second."""
        return self.flops_per_token.step * self.text_tokens_per_second

    @property
    def utilisation(self) -> float:
        """Model FLOP/s of a device, as a share of its rate in a large matrix product."""
        return self.model_flops_per_second / self.processes / self.matrix_product_flops_per_second

    def save(self, file: str | Path) -> None:
        """Write all of it as JSON.

        Raises:
            PotstillError: it cannot be written.
        """
        derived = {
            "model_flops_per_second": self.model_flops_per_second,
            "utilisation": self.utilisation,
            "text_tokens_per_second": self.text_tokens_per_second,
        }
        write_text(Path(file).expanduser(), json_text(asdict(self) | derived, str(file)) + "\n")

    def __str__(self) -> str:
        number = self.gradient_accumulation_steps
        accumulated = f"{number} micro-batch{'es' if number > 1 else ''} a step"
        if number != self.gradient_accumulation_steps_of_recipe:
            accumulated += f" (the recipe has {self.gradient_accumulation_steps_of_recipe})"
        devices = f"{self.processes} × " if self.processes > 1 else ""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        read = f"{self.labelled_per_block} of each {self.block_size} predicted"
        if self.texts_per_block is not None:
            read = f"{self.texts_per_block:.1f} texts in each {self.block_size}, {self.padding:.1%} padding"
        head = [
            f"{devices}{self.hardware} · {self.dtype}, {'layers compiled' if self.compiled else 'eager'}"
            f"{', steps recorded as CUDA graphs' if self.recorded else ''} · {versions}",
            _shape(self.model) + (f" ← teacher {_shape(self.teacher)}" if self.teacher else ", no teacher"),
            " · ".join(_loss(name, options) for name, options in self.objective.items()),
            f"{self.speed.batch_size} × {self.block_size} tokens a device, {read} · {accumulated} · "
            f"{counted(self.measured_steps, 'step')} measured after {self.warmup_steps} to warm up",
        ]
        columns = [self.speed] if self.baseline is None else [self.speed, self.baseline]
        rows = [] if self.baseline is None else [("", ["potstill", "plain"])]
        rows += [
            ("tokens/s", [f"{speed.tokens_per_second:,.0f}" for speed in columns]),
            *([("  without padding", [f"{self.text_tokens_per_second:,.0f}"])] if self.texts_per_block else []),
            ("ms per micro-batch", [f"{speed.ms_per_micro_batch:,.2f}" for speed in columns]),
            ("ms per step", [f"{speed.ms_per_step:,.2f}" for speed in columns]),
        ]
        for part, words in _PART_TITLES.items():
            cells = [f"{speed.ms_per_step_by_part[part]:,.2f}" for speed in columns]
            if self.recorded and part in ("teacher", "student", "losses"):
                cells[0] = "in backward"
            rows.append((f"  {words}", cells))
        memory = "peak memory, tensors" if self.on_cuda else "peak memory, process"
        rows.append((memory, [_gibibytes(speed.peak_memory_bytes) for speed in columns]))
        table = [(f"{name:<22}" + "".join(f"{cell:>16}" for cell in cells)).rstrip() for name, cells in rows]

        flops, rate = self.flops_per_token, self.matrix_product_flops_per_second
        tail = [
            f"FLOPs per token: teacher forward {flops.teacher_forward / 1e6:,.3g} M + student forward "
            f"{flops.student_forward / 1e6:,.3g} M + backward {flops.student_backward / 1e6:,.3g} M = "
            f"{flops.step / 1e6:,.3g} M",
            f"utilisation: {self.utilisation:.1%}, {self.model_flops_per_second / self.processes / 1e12:,.3g} of the "
            f"{rate / 1e12:,.3g} TFLOP/s that a large {self.dtype} matrix product reaches here",
            f"first step: done {self.seconds_to_first_step:.1f} s after building began",
        ]
        if self.ratio_to_baseline is not None:
            rounds = len(self.speed.tokens_per_second_by_round)
            tail.append(f"potstill ÷ plain: {self.ratio_to_baseline:.2f} × (median of {rounds} rounds, taking turns)")
            tail.append(
                "(potstill computes the vocabulary and its gradient in the losses, plain in its forward and backward)"
            )
        return "\n".join([*head, "", *table, "", *tail])


def _shape(model: dict[str, Any]) -> str:
    return (
        f"{model['num_hidden_layers']}-layer {model['model_type']}, {model['hidden_size']} wide, "
        f"{model['parameters']:,} parameters"
    )


def _loss(name: str, options: dict[str, Any]) -> str:
    return f"{name} {', '.join(f'{option} {value}' for option, value in options.items())}"


def _gibibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:,.2f} GiB"
