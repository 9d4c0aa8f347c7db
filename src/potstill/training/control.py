"""When training stops: its steps, its minutes, a signal, or the share at which a growing model grows."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from potstill.errors import PotstillError

_STEPS_BETWEEN_AGREEMENTS = 10


class TrainingInterrupted(PotstillError):  # noqa: N818 (it tells what happened; nothing is wrong)
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
    """Keeps the clock and ends the run.

    Progress is a number from 0 to 1: the larger of the share of steps and, with a budget of minutes, the share of time.
    Seconds spent before an interruption count: they come back from the checkpoint through `elapsed_before`.

    Seconds in which nothing was learnt count for the budget, and are no progress: those of a step that compiles, which
    `stands_still` tells, and those spent beside the training, which `beside` tells. A warm-up of some seconds would be
    over before the second step otherwise.

    Several processes must agree on the time and on signals, or one would leave while the others wait for it. They do
    so at the first steps and then every few, and in between advance the agreed time by the pace they last had.

    Args:
        max_minutes: budget of wall-clock minutes, evaluation and checkpoints included; None for no budget.
        stop_at: progress at which to stop with a checkpoint, below 1 when a deeper model takes over from there.

    Attributes:
        elapsed_before: seconds of earlier sessions.
        stood_still: seconds of all sessions that were no progress, up to the last step.
    """

    def __init__(self, max_minutes: float | None = None, stop_at: float = 1.0) -> None:
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.stop_at = stop_at
        self.elapsed_before = 0.0
        self.stood_still = 0.0
        self.received_signal: int | None = None
        self.stopped_at_share = False
        self._started: float | None = None
        self._read = 0.0
        self._beside = 0.0
        self._stands_still = False
        self._steps = 0
        self._agreed_at = 0
        self._agreed = self._agreed_still = self._learnt = 0.0
        self._pace = 0.0
        self._interrupted = False

    def start(self) -> None:
        """Start the clock of this session."""
        self._started = time.monotonic()
        self._agreed = self._read = self.elapsed_before
        self._agreed_still = self.stood_still
        self._learnt = self._agreed - self._agreed_still

    def stands_still(self) -> None:
        """Note that the step in hand does more than train: nothing of it is progress."""
        self._stands_still = True

    def beside(self, seconds: float) -> None:
        """Note seconds since the last step that were spent on something else, an evaluation for example."""
        self._beside += seconds

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier sessions included, by this process's own clock."""
        return self.elapsed_before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def spent(self) -> bool:
        """Whether earlier sessions used the budget up."""
        return self.max_seconds is not None and self.elapsed_before >= self.max_seconds

    def progress(self, state: TrainerState) -> float:
        """Return how far training has come, from 0 to 1."""
        by_steps = state.global_step / max(state.max_steps, 1)
        by_time = 0.0
        if self.max_seconds is not None:
            left = self.max_seconds - self._agreed
            by_time = 1 - left / (self.max_seconds - self._agreed_still) if left > 0 else 1.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, state: TrainerState) -> float:
        """Return the seconds until the steps or the budget end, whichever is first, at the pace so far."""
        by_steps = state.global_step / max(state.max_steps, 1)
        left = self.elapsed * (1 - by_steps) / max(by_steps, 1e-9)
        return left if self.max_seconds is None else max(0.0, min(left, self.max_seconds - self.elapsed))

    def run_state(self, state: TrainerState) -> dict[str, float]:
        """Return what a checkpoint must remember; what has passed since the last step was no progress."""
        elapsed = self.elapsed
        return {
            "elapsed_seconds": elapsed,
            "stood_still_seconds": self.stood_still + max(0.0, elapsed - self._read),
            "progress": self.progress(state),
        }

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the clock before the scheduler does, so that the learning rate follows it."""
        self._read_clock()
        if args.world_size <= 1:
            self._agreed, self._agreed_still = self._read, self.stood_still
            self._interrupted = self.received_signal is not None
        elif self._steps <= _STEPS_BETWEEN_AGREEMENTS or (state.global_step + 1) % _STEPS_BETWEEN_AGREEMENTS == 0:
            mine = [self._read, self.stood_still, float(self.received_signal or 0)]
            agreed = torch.tensor(mine, dtype=torch.float64, device=args.device)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
            self._agreed, self._agreed_still, number = agreed.tolist()
            learnt = self._agreed - self._agreed_still
            self._pace = max(0.0, learnt - self._learnt) / (self._steps - self._agreed_at)
            self._learnt, self._agreed_at = learnt, self._steps
            self._interrupted = number > 0
            self.received_signal = int(number) or None
        else:
            self._agreed += self._pace

    def _read_clock(self) -> None:
        """Count a step, and how much of the time since the last one was no progress."""
        elapsed = self.elapsed
        took = elapsed - self._read
        self.stood_still += took if self._stands_still else min(took, self._beside)
        self._read, self._beside, self._stands_still = elapsed, 0.0, False
        self._steps += 1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """End the run where one of its limits is reached, never in the middle of an accumulated step."""
        progress = self.progress(state)
        if self._interrupted:
            control.should_save = control.should_training_stop = True
        elif progress >= 1:  # what follows, evaluation and output, may fail: the training must not be lost with it
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != "no"
        elif progress >= self.stop_at:
            self.stopped_at_share = control.should_save = control.should_training_stop = True
        return control

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM end the run after the step in hand; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self.received_signal is not None:
                raise KeyboardInterrupt
            self.received_signal = number

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def schedule_by_progress(
    optimizer: torch.optim.Optimizer, args: TrainingArguments, progress: Callable[[], float]
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning-rate schedule that `args` names, driven by progress (0 to 1) instead of by steps.

    With a budget of minutes nobody knows the number of steps beforehand. The schedule is therefore laid out over a
    fixed number of points, and looked up at the progress made.
    """
    points = 100_000
    layout = get_scheduler(
        SchedulerType(args.lr_scheduler_type),
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=int(args.warmup_steps * points),
        num_training_steps=points,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},
    )
    if not isinstance(layout, torch.optim.lr_scheduler.LambdaLR):
        raise PotstillError(
            f"--lr_scheduler_type {args.lr_scheduler_type} does not work with --max_train_minutes: "
            "use linear or cosine."
        )
    factor = layout.lr_lambdas[0]
    first = max(1, int(points * 1e-4))  # the first step's progress is 0, and so would its learning rate be
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor(max(first, round(progress() * points))))
