"""Who is measured when: all forms in turns, so that whatever else the machine does slows all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from potstill.training.progress import duration

REQUESTS_OF_A_TURN, TURNS_AT_LEAST = 10, 20
SECONDS_TO_SETTLE = 0.2
"""Uncounted, at the start of a turn: on a Xeon a model of 4 ms a request took 9 at first, and 4 after some 70 ms. (Why
was not looked into; two threads that wake together may share a core until the system moves one.)"""
SECONDS_BETWEEN_LINES = 15

Turn = TypeVar("Turn")


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the first form another one is.

    Attributes:
        value: median over turns of the first form's seconds by this one's in the same turn.
        low: a tenth of the turns have a smaller one.
        high: a tenth of the turns have a larger one.
        turns: how many there were.
    """

    value: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, first: Sequence[float], other: Sequence[float]) -> Ratio:
        """Compare the seconds that two forms took in the same turns."""
        ratios = np.asarray(first) / np.asarray(other)
        low, high = np.percentile(ratios, (10, 90))
        return cls(statistics.median(ratios.tolist()), float(low), float(high), len(ratios))


def turns_of(requests: int, passes: int) -> list[list[int]]:
    """Divide passes over requests into turns of ten requests, or of fewer where there are few requests."""
    size = max(1, min(REQUESTS_OF_A_TURN, requests // TURNS_AT_LEAST))
    once = [list(range(start, min(start + size, requests))) for start in range(0, requests, size)]
    return once * passes


def take_turns(
    turns: Sequence[Turn], forms: int, run: Callable[[int, Turn], list[float]], progress: TurnsProgress
) -> list[list[list[float]]]:
    """Have each form take each turn; each time another form begins.

    Args:
        turns: what is done in each.
        forms: how many there are.
        run: does a turn with the form of a number, and returns the seconds of what was done.
        progress: is told of each turn.

    Returns:
        For each form, for each turn, those seconds.
    """
    seconds: list[list[list[float]]] = [[] for _ in range(forms)]
    for number, turn in enumerate(turns):
        for place in range(forms):
            form = (number + place) % forms
            seconds[form].append(run(form, turn))
        progress.tell(number + 1, len(turns))
    return seconds


class TurnsProgress:
    """Prints how far a part is, every now and then, to standard error.

    Args:
        what: the part, in words.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._started = self._told = time.monotonic()

    def tell(self, done: int, of: int) -> None:
        """Say how much is done and how long the rest will take, if the last word was some time ago."""
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_LINES or done == of:
            return
        self._told = now
        left = (now - self._started) / done * (of - done)
        say(f"{self.what}: {done:,} of {of:,} turns · {duration(left)} left")


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
