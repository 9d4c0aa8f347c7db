"""The clock of a run: how long it has trained, and how much of that time does not count as progress."""

from __future__ import annotations

import time


class TrainingClock:
    """Counts the seconds of a run, over all its sessions.

    Excluded time counts for the budget but not as progress. It is the time of steps that compile, and of work between
    steps, such as an evaluation. If it counted as progress, a short warm-up would end before the second step.

    Args:
        max_minutes: budget of wall-clock minutes, evaluation and checkpoints included; None for no budget.

    Attributes:
        max_seconds: the budget; None for no budget.
        elapsed_before: seconds of earlier sessions.
        excluded: excluded seconds of all sessions, up to the last step.
        read_at: seconds of training at the last step.
        steps: number of steps in this session.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.elapsed_before = 0.0
        self.excluded = 0.0
        self.read_at = 0.0
        self.steps = 0
        self._started: float | None = None
        self._excluded_since = 0.0
        self._whole_step_excluded = False

    def start(self) -> None:
        """Start this session."""
        self._started = time.monotonic()
        self.read_at = self.elapsed_before

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier sessions included, by this process's own clock."""
        return self.elapsed_before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def spent(self) -> bool:
        """Whether earlier sessions have used up the budget."""
        return self.max_seconds is not None and self.elapsed_before >= self.max_seconds

    @property
    def excluded_until_now(self) -> float:
        """Excluded seconds of all sessions, the time since the last step included."""
        return self.excluded + max(0.0, self.elapsed - self.read_at)

    def exclude_step(self) -> None:
        """Exclude the current step: it does more than train."""
        self._whole_step_excluded = True

    def exclude(self, seconds: float) -> None:
        """Exclude seconds that were spent on something else since the last step."""
        self._excluded_since += seconds

    def end_step(self) -> None:
        """Count a step, and how much of the time since the last one is excluded."""
        elapsed = self.elapsed
        step_seconds = elapsed - self.read_at
        self.excluded += step_seconds if self._whole_step_excluded else min(step_seconds, self._excluded_since)
        self.read_at, self._excluded_since, self._whole_step_excluded = elapsed, 0.0, False
        self.steps += 1
