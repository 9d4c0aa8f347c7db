"""Progress of a run: one line each time the trainer logs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from potstill.arguments import RunArguments
from potstill.corpus import Blocks
from potstill.recipe import Recipe
from potstill.student.fp8 import Fp8
from potstill.training.fixed_point import SATURATED
from potstill.training.hardware import hardware
from potstill.training.step import DistillationStep


class ProgressLines(TrainerCallback):
    """Print the logs to standard error: step, losses by name, learning rate, speed, time left.

    Args:
        headline: printed before the first step.
        evaluation_line: turns the logs of an evaluation into the line to print; returns "" for other logs.
        unit: unit of the printed speed, which is logged as `{unit}_per_second`.
    """

    def __init__(self, headline: str, evaluation_line: Callable[[dict[str, float]], str], unit: str) -> None:
        self.headline = headline
        self.evaluation_line = evaluation_line
        self.unit = unit

    def on_train_begin(self, args: RunArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the headline."""
        if state.is_world_process_zero:
            self._print(self.headline)

    def on_log(
        self,
        args: RunArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print one line for training losses or for an evaluation. Other logs only go to the logging back ends."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            terms = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in logs.items() if k.startswith("loss_"))
            shares = [f"{k.removeprefix(SATURATED)} {v:.2%}" for k, v in logs.items() if k.startswith(SATURATED)]
            # With a budget of minutes the maximum number of steps is never reached, so it is not printed.
            total = f"/{state.max_steps:,}" if args.minutes is None else ""
            self._print(
                f"step {state.global_step:,}{total} ({logs['progress']:.0%})",
                f"loss {logs['loss']:.3f}{f' ({terms})' if terms else ''}",
                f"lr {logs['learning_rate']:.2e}",
                f"out of range: {', '.join(shares)}" if shares else "",
                f"{logs[f'{self.unit}_per_second']:,.0f} {self.unit}/s",
                f"{duration(logs['seconds_left'])} left" if logs["progress"] > 0 else "",
            )
        elif line := self.evaluation_line(logs):
            self._print(f"step {state.global_step:,}", line)

    @staticmethod
    def _print(*parts: str) -> None:
        print(" · ".join(part for part in parts if part), file=sys.stderr, flush=True)


def headline(step: DistillationStep, blocks: Blocks, args: Recipe) -> str:
    """Return one line that names the model, the teachers if a loss needs them, the text and the hardware."""
    parameters = sum(parameter.numel() for parameter in step.student.parameters())
    models = f"{_shape(step.student)}, {parameters:,} parameters"
    if step.teachers and step.objective.needs_teacher:
        teachers = "; ".join(_shape(teacher) for teacher in step.teachers)
        models += f" ← {'teacher' if len(step.teachers) == 1 else f'{len(step.teachers)} teachers:'} {teachers}"
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else str(step.student.dtype).removeprefix("torch.")
    if (fp8 := Fp8.of(getattr(args, "fp8", None))) is not None:
        precision += f", {fp8}{'' if args.device.type == 'cuda' else ' (emulated, slow)'}"
    devices = f"{args.world_size} × " if args.world_size > 1 else ""
    cut = f", {args.short_share:.0%} of them cut to {args.short_block_size}" if args.short_block_size else ""
    if args.short_first:
        cut += f", all of them in the first {args.short_first:.0%} of the training"
    return (
        f"{models} · {len(blocks):,} blocks of {blocks.block_size} tokens, {args.blocks_per_step:,} a step{cut} · "
        f"{precision} on {devices}{hardware(args.device)}"
    )


def held_out_line(logs: dict[str, float]) -> str:
    """Return the line for the results of `held_out_metrics` or `encoder_metrics`, or "" for other logs."""
    if "eval_loss" not in logs:
        return ""
    if "eval_accuracy" not in logs:  # of an encoder without a head
        cosine = f", cosine {logs['eval_cosine']:.4f}" if "eval_cosine" in logs else ""
        short = f", cut short {logs['eval_short_loss']:.4f}" if "eval_short_loss" in logs else ""
        return f"held-out loss {logs['eval_loss']:.4f}{cosine}{short}"
    kind = "causal" if "eval_perplexity" in logs else "masked"
    student = f"held-out {kind} LM {logs['eval_loss']:.3f}, accuracy {logs['eval_accuracy']:.1%}"
    if "eval_perplexity" in logs:
        student += f", perplexity {logs['eval_perplexity']:.2f}"
    if "eval_short_loss" in logs:
        student += f", cut short {logs['eval_short_loss']:.3f}, {logs['eval_short_accuracy']:.1%}"
    if "eval_teacher_loss" not in logs:
        return student
    name = "teachers" if "eval_teacher_2_loss" in logs else "teacher"
    teacher = f"{name} {logs['eval_teacher_loss']:.3f}, {logs['eval_teacher_accuracy']:.1%}"
    teacher += f" · KL {logs['eval_kl']:.3f} · agreement {logs['eval_agreement']:.1%}"
    teacher += f" · cosine {logs['eval_cosine']:.3f}" if "eval_cosine" in logs else ""
    return f"{student} · {teacher}"


def _shape(model: PreTrainedModel) -> str:
    return f"{model.config.model_type}, {model.config.num_hidden_layers} layers"


def duration(seconds: float) -> str:
    """Return seconds as ``1:02:03``, or ``2:03`` under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
