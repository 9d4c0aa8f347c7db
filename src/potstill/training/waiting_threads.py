"""Say when other processes slow down a training on a CPU, and what helps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.live_line import say

SECONDS, STEPS = 5.0, 3
"""Least time, and least number of steps, over which the waiting is measured."""
NOTICED = 0.5
"""Number of other busy processes from which on a run says so."""
TASKS = Path("/proc/self/task")
LIMIT, OLD_LIMIT = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")


class Seconds(NamedTuple):
    """What a thread has done so far.

    Attributes:
        running: seconds on a core.
        waiting: seconds in which it could run but had no core.
    """

    running: float
    waiting: float


class WaitingThreads(TrainerCallback):
    """Measures in the first steps how long the threads of a run wait for a core, and prints a sentence if it is long.

    The threads of a product wait for the slowest of them. If other processes use the cores too, fewer threads can be
    faster. The run does not change their number itself: sums would be rounded in another order from run to run.
    """

    def __init__(self) -> None:
        self._before: dict[str, Seconds] = {}
        self._since = 0.0
        self._steps = 0
        self._done = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print a sentence if the run may use fewer cores than it has threads."""
        self._before, self._steps = {}, 0
        threads, cores = torch.get_num_threads(), core_limit()
        self._done = args.device.type != "cpu" or threads == 1 or "OMP_NUM_THREADS" in os.environ
        if not self._done and cores is not None and cores < threads:
            self._done = True
            self._print(
                state,
                f"This run computes with {threads} threads, but a limit of its container lets it use {cores:g} cores: "
                f"it is faster with OMP_NUM_THREADS={max(1, round(cores))} in the environment.",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure from the end of the first step on, until the time is long enough."""
        if self._done:
            return
        if not self._before:
            self._before, self._since = seconds_of_threads(), time.monotonic()
            self._done = not self._before
            return
        self._steps += 1
        if self._steps < STEPS or time.monotonic() - self._since < SECONDS:
            return
        self._done = True
        threads = torch.get_num_threads()
        others = competitors(self._before, seconds_of_threads(), threads)
        if others >= NOTICED:
            fewer = max(1, threads - max(1, round(others)))
            self._print(
                state,
                f"Other processes keep about {others:.1f} of the {threads} cores busy that this run computes on, and "
                "its threads wait for each other: it may be faster with "
                f"OMP_NUM_THREADS={fewer} in the environment.",
            )

    @staticmethod
    def _print(state: TrainerState, sentence: str) -> None:
        if state.is_world_process_zero:
            say(sentence)


def seconds_of_threads(tasks: Path = TASKS) -> dict[str, Seconds]:
    """Return what each thread of this process has done, by its number; nothing where the system does not say."""
    found = {}
    for file in tasks.glob("*/schedstat"):
        try:
            running, waiting, _ = file.read_text().split()
        except (OSError, ValueError):  # the thread has ended
            continue
        found[file.parent.name] = Seconds(int(running) / 1e9, int(waiting) / 1e9)
    return found


def competitors(before: dict[str, Seconds], after: dict[str, Seconds], threads: int) -> float:
    """Return how many other busy processes share the cores of a run.

    With n threads on n cores and c others, a thread runs for n parts of its time and waits for c parts.

    Args:
        before: from `seconds_of_threads`.
        after: the same, later.
        threads: n.
    """
    both = before.keys() & after.keys()
    running = sum(after[name].running - before[name].running for name in both)
    waiting = sum(after[name].waiting - before[name].waiting for name in both)
    return threads * waiting / running if running > 0 else 0.0


def core_limit(file: Path = LIMIT, old: Path = OLD_LIMIT) -> float | None:
    """Return the number of cores that a limit of the control group allows, such as `docker run --cpus`; None for any.

    Args:
        file: `cpu.max` of the second version of control groups: microseconds, or max, of a period.
        old: folder with the two files of the first version.
    """
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        try:
            quota = (old / "cpu.cfs_quota_us").read_text().strip()
            period = (old / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
