"""Progress of a training: what is trained, the steps, and the evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from potstill.arguments import RunArguments
from potstill.corpus import Blocks
from potstill.live_line import LiveLine, duration, say
from potstill.recipe import Recipe
from potstill.student.fp8 import Fp8
from potstill.training.fixed_point import SATURATED
from potstill.training.hardware import hardware
from potstill.training.step import DistillationStep
from potstill.wording import counted


class ProgressLines(TrainerCallback):
    """Shows the steps of a training in a `LiveLine`, with losses by name, learning rate, speed and time left.

    The headline and the lines of evaluations stay. The line of the last step stays too, and so does that of a step at
    which the training evaluates. Only the first process prints.

    Args:
        headline: printed before the first step.
        evaluation_line: turns the logs of an evaluation into the line to print; returns "" for other logs.
        unit: unit of the shown speed, which is logged as `{unit}_per_second`.
        how_far: returns `progress`, `seconds_left` and the speed at this moment, as they are logged.

    Attributes:
        quiet: whether this training is a part of other work that prints its own lines. Then only a terminal shows
            its steps, at the end of the line of the other work.
    """

    def __init__(
        self,
        headline: str,
        evaluation_line: Callable[[dict[str, float]], str],
        unit: str,
        how_far: Callable[[], dict[str, float]],
    ) -> None:
        self.headline = headline
        self.evaluation_line = evaluation_line
        self.unit = unit
        self.how_far = how_far
        self.quiet = False
        self._line: LiveLine | None = None
        self._logs: dict[str, float] = {}
        self._step = -1  # of these logs

    def on_train_begin(self, args: RunArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the headline, and begin to show steps."""
        if state.is_world_process_zero:
            self._print(self.headline)
            self._logs, self._step = {}, -1
            self._line = LiveLine(wait=False).__enter__()

    def on_step_end(self, args: RunArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the step on a terminal, with the losses that were logged last."""
        if self._line is not None and self._line.live and self._line.due:
            self._show(self._line, args, state, self._logs | self.how_far())

    def on_log(
        self,
        args: RunArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show training losses, or print the line of an evaluation. Other logs only go to the logging back ends."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._logs, self._step = logs, state.global_step
            if self._line is not None:
                self._show(self._line, args, state, logs, lasting=True)
        elif line := self.evaluation_line(logs):
            if self._line is not None and self._step == state.global_step:
                self._line.flush()
            self._print(" · ".join((f"step {state.global_step:,}", line)))

    def close(self) -> None:
        """Print the line of the last step, and end the live line. Without one nothing happens."""
        if self._line is not None:
            self._line.flush()
            self._line.stop()
            self._line = None

    def _show(
        self, shown: LiveLine, args: RunArguments, state: TrainerState, logs: dict[str, float], lasting: bool = False
    ) -> None:
        # With a budget of minutes the maximum number of steps is never reached, so it is not printed.
        total = f"/{state.max_steps:,}" if args.minutes is None else ""
        step = f"step {state.global_step:,}{total} ({logs['progress']:.0%})"
        loss = f"loss {logs['loss']:.3f}" if "loss" in logs else ""
        terms = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in logs.items() if k.startswith("loss_"))
        shares = [f"{k.removeprefix(SATURATED)} {v:.2%}" for k, v in logs.items() if k.startswith(SATURATED)]
        beyond = f"out of range: {', '.join(shares)}" if shares else ""
        rate = f"lr {logs['learning_rate']:.2e}" if "learning_rate" in logs else ""
        speed = f"{logs[f'{self.unit}_per_second']:,.0f} {self.unit}/s"
        left = f"{duration(logs['seconds_left'])} left" if logs["progress"] > 0 else ""
        line = [step, f"{loss} ({terms})" if terms else loss, rate, beyond, speed, left]
        shown.update(
            logs["progress"],
            [step, loss, left, speed, terms, rate, beyond],
            " · ".join(filter(None, line)) if lasting and not self.quiet else "",
        )

    def _print(self, line: str) -> None:
        if not self.quiet:
            say(line)


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
        f"{models} · {counted(len(blocks), 'block')} of {blocks.block_size} tokens, {args.blocks_per_step:,} a "
        f"step{cut} · {precision} on {devices}{hardware(args.device)}"
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
    return f"{model.config.model_type}, {counted(model.config.num_hidden_layers, 'layer')}"
