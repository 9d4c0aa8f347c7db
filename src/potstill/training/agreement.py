"""The processes of one run agree on the time and on signals. Otherwise one could stop while the others wait for it."""

from __future__ import annotations

import torch
from transformers import TrainerState, TrainingArguments

from potstill.training.clock import TrainingClock

STEPS_BETWEEN_AGREEMENTS = 10


class Agreement:
    """The training time and the ending signal that all processes of a run agree on.

    The processes communicate at each of the first steps, and later at every `STEPS_BETWEEN_AGREEMENTS`-th step. At the
    steps between, each process adds the last agreed time per step. So all processes have the same time at every step.

    Args:
        clock: the clock of this process.

    Attributes:
        elapsed: seconds of training so far.
        excluded: the part of `elapsed` that does not count as progress.
        signal: number of the signal that one of the processes has received; None if none has.
    """

    def __init__(self, clock: TrainingClock) -> None:
        self.clock = clock
        self.elapsed = self.excluded = 0.0
        self.signal: int | None = None
        self._progress_seconds = 0.0
        self._step = 0
        self._seconds_per_step = 0.0

    def start(self) -> None:
        """Start from the time of earlier sessions."""
        self.elapsed, self.excluded = self.clock.read_at, self.clock.excluded
        self._progress_seconds = self.elapsed - self.excluded

    def agree(self, args: TrainingArguments, state: TrainerState, received: int | None) -> None:
        """Agree on the time of a step that the clock has just counted.

        Args:
            args: options of the run.
            state: state of the run; its `global_step` does not yet count this step.
            received: number of the signal that this process has received.
        """
        if args.world_size <= 1:
            self.elapsed, self.excluded, self.signal = self.clock.read_at, self.clock.excluded, received
            return
        steps = self.clock.steps
        if steps > STEPS_BETWEEN_AGREEMENTS and (state.global_step + 1) % STEPS_BETWEEN_AGREEMENTS != 0:
            self.elapsed += self._seconds_per_step
            return
        own = [self.clock.read_at, self.clock.excluded, float(received or 0)]
        agreed = torch.tensor(own, dtype=torch.float64, device=args.device)
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
        self.elapsed, self.excluded, number = agreed.tolist()
        progress_seconds = self.elapsed - self.excluded
        self._seconds_per_step = max(0.0, progress_seconds - self._progress_seconds) / (steps - self._step)
        self._progress_seconds, self._step = progress_seconds, steps
        self.signal = int(number) or None
