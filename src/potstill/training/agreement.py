"""Several processes of one run agree on the time and on signals, or one would leave while the others wait for it."""

from __future__ import annotations

import torch
from transformers import TrainerState, TrainingArguments

from potstill.training.clock import TrainingClock

STEPS_BETWEEN_AGREEMENTS = 10


class Agreement:
    """What all processes of a run take for the time and for the signal that ends it.

    The processes agree at the first steps and then every few. In between, each advances the agreed time by the pace
    they last had, so that all of them have the same time.

    Args:
        clock: of this process.

    Attributes:
        elapsed: seconds of training so far.
        excluded: those of them that are no progress.
        signal: number of the signal that one of the processes has received; None if none has.
    """

    def __init__(self, clock: TrainingClock) -> None:
        self.clock = clock
        self.elapsed = self.excluded = 0.0
        self.signal: int | None = None
        self._learning = 0.0
        self._step = 0
        self._pace = 0.0

    def start(self) -> None:
        """Take up the time of earlier sessions."""
        self.elapsed, self.excluded = self.clock.read_at, self.clock.excluded
        self._learning = self.elapsed - self.excluded

    def agree(self, args: TrainingArguments, state: TrainerState, received: int | None) -> None:
        """Agree on the time of a step that the clock has just counted.

        Args:
            args: of the run.
            state: of the run, before the step is counted there.
            received: number of the signal that this process has received.
        """
        if args.world_size <= 1:
            self.elapsed, self.excluded, self.signal = self.clock.read_at, self.clock.excluded, received
            return
        steps = self.clock.steps
        if steps > STEPS_BETWEEN_AGREEMENTS and (state.global_step + 1) % STEPS_BETWEEN_AGREEMENTS != 0:
            self.elapsed += self._pace
            return
        mine = [self.clock.read_at, self.clock.excluded, float(received or 0)]
        agreed = torch.tensor(mine, dtype=torch.float64, device=args.device)
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
        self.elapsed, self.excluded, number = agreed.tolist()
        learning = self.elapsed - self.excluded
        self._pace = max(0.0, learning - self._learning) / (steps - self._step)
        self._learning, self._step = learning, steps
        self.signal = int(number) or None
