"""When training stops: after its steps, after its minutes, on a signal, or where a growing model grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.errors import PotstillError
from potstill.training.agreement import Agreement
from potstill.training.clock import TrainingClock
from potstill.training.signals import SignalCatcher


class TrainingInterrupted(PotstillError):  # noqa: N818 (it reports an event; nothing is wrong)
    """Training ended on a signal after saving a checkpoint.

    Attributes:
        checkpoint: folder to resume from.
        signal: number of the signal.
    """

    def __init__(self, checkpoint: Path, signal: int, step: int) -> None:
        super().__init__(
            f"Interrupted at step {step}; nothing is lost: resume with --resume_from_checkpoint {checkpoint}"
        )
        self.checkpoint = checkpoint
        self.signal = signal
        self.exit_status = 128 + signal


class RunControl(TrainerCallback):
    """Ends a run when it reaches one of its limits: its steps, its budget, a signal, or a share of the training.

    Progress is a number from 0 to 1: the larger of the share of steps and, with a budget, the share of time. A
    checkpoint stores the time that has passed, so the seconds before an interruption count.

    Args:
        max_minutes: budget of wall-clock minutes; see `TrainingClock`.
        stop_at: progress at which to stop with a checkpoint. It is below 1 if a deeper model continues from there.

    Attributes:
        clock: the clock of this process.
        agreement: the time that all processes agree on.
        signals: catches the signals of this process.
    """

    def __init__(self, max_minutes: float | None = None, stop_at: float = 1.0) -> None:
        self.clock = TrainingClock(max_minutes)
        self.agreement = Agreement(self.clock)
        self.signals = SignalCatcher()
        self.stop_at = stop_at

    def start(self) -> None:
        """Start the clock of this session."""
        self.clock.start()
        self.agreement.start()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the clock of a checkpoint, from the values that `run_state` returned."""
        self.clock.elapsed_before = state["elapsed_seconds"]
        self.clock.excluded = state["excluded_seconds"]

    @property
    def received_signal(self) -> int | None:
        """Number of the signal that ends the run, whichever process received it."""
        return self.agreement.signal or self.signals.received

    def progress(self, state: TrainerState) -> float:
        """Return how far training has come, from 0 to 1."""
        by_steps = state.global_step / max(state.max_steps, 1)
        by_time, budget = 0.0, self.clock.max_seconds
        if budget is not None:
            left = budget - self.agreement.elapsed
            by_time = 1 - left / (budget - self.agreement.excluded) if left > 0 else 1.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, state: TrainerState) -> float:
        """Return the seconds until the steps or the budget end, whichever comes first, at the average speed so far."""
        by_steps, elapsed, budget = (
            state.global_step / max(state.max_steps, 1),
            self.clock.elapsed,
            self.clock.max_seconds,
        )
        left = elapsed * (1 - by_steps) / max(by_steps, 1e-9)
        return left if budget is None else max(0.0, min(left, budget - elapsed))

    def run_state(self, state: TrainerState) -> dict[str, float]:
        """Return the values that a checkpoint must store."""
        return {
            "elapsed_seconds": self.clock.elapsed,
            "excluded_seconds": self.clock.excluded_until_now,
            "progress": self.progress(state),
        }

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the clock before the scheduler does, so that the learning rate follows it."""
        self.clock.end_step()
        self.agreement.agree(args, state, self.signals.received)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """End the run when it reaches one of its limits, but never inside an accumulated step."""
        progress = self.progress(state)
        if self.agreement.signal is not None:
            control.should_save = control.should_training_stop = True
        elif progress >= 1:  # the evaluation and the output come next and may fail: a checkpoint keeps the training
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != "no"
        elif progress >= self.stop_at:
            control.should_save = control.should_training_stop = True
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """End the run at once if a signal came during an evaluation; several processes agree only after a step."""
        alone = args.world_size <= 1 and self.signals.received is not None
        if alone and state.global_step > 0 and self.progress(state) < 1:
            self.agreement.signal = self.signals.received
            control.should_save = control.should_training_stop = True
        return control
