"""Measures the forms in turns, so that other work on the machine slows all of them alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from potstill.live_line import duration

REQUESTS_OF_A_TURN, TURNS_AT_LEAST = 10, 20
SECONDS_TO_SETTLE = 0.2
"""Time at the start of a turn in which requests run but do not count. On a Xeon, a model that takes 4 ms a request took
9 ms at first, and 4 ms after about 70 ms. (The cause is not known. Two threads that wake together may share a core
until the system moves one of them.)"""
SECONDS_BETWEEN_LINES = 15

Turn = TypeVar("Turn")


@dataclass(frozen=True)
class Ratio:
    """The speed of a form, as a multiple of the first form's speed.

    Attributes:
        value: median over turns. The ratio of a turn is the first form's seconds divided by this form's.
        low: a tenth of the turns have a smaller ratio.
        high: a tenth of the turns have a larger ratio.
        turns: number of turns.
    """

    value: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, first: Sequence[float], other: Sequence[float]) -> Ratio:
        """Compare the seconds of two forms in the same turns."""
        ratios = np.asarray(first) / np.asarray(other)
        low, high = np.percentile(ratios, (10, 90))
        return cls(statistics.median(ratios.tolist()), float(low), float(high), len(ratios))


def turns_of(requests: int, passes: int) -> list[list[int]]:
    """Divide passes over the requests into turns of ten requests, or fewer if there are few requests."""
    size = max(1, min(REQUESTS_OF_A_TURN, requests // TURNS_AT_LEAST))
    once = [list(range(start, min(start + size, requests))) for start in range(0, requests, size)]
    return once * passes


def take_turns(
    turns: Sequence[Turn], forms: int, run: Callable[[int, Turn], list[float]], progress: TurnsProgress
) -> list[list[list[float]]]:
    """Run each form in each turn. Each turn begins with another form.

    Args:
        turns: the work of each turn.
        forms: number of forms.
        run: number of a form and work of a turn → seconds of each part of the work.
        progress: reports the progress after each turn.

    Returns:
        For each form and each turn, these seconds.
    """
    seconds: list[list[list[float]]] = [[] for _ in range(forms)]
    for number, turn in enumerate(turns):
        for place in range(forms):
            form = (number + place) % forms
            seconds[form].append(run(form, turn))
        progress.report(number + 1, len(turns))
    return seconds


class TurnsProgress:
    """Prints the progress of a measurement to standard error, at most once in `SECONDS_BETWEEN_LINES`.

    Args:
        what: name of the measurement.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._started = self._last_report = time.monotonic()

    def report(self, done: int, of: int) -> None:
        """Print how much is done and how long the rest will take, if the last report was long enough ago."""
        now = time.monotonic()
        if now - self._last_report < SECONDS_BETWEEN_LINES or done == of:
            return
        self._last_report = now
        left = (now - self._started) / done * (of - done)
        log(f"{self.what}: {done:,} of {of:,} turns · {duration(left)} left")


def log(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)
