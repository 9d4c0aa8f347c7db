"""Watches the losses and gradients of a run step by step: means for the log, steps that are not finite, and spikes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from potstill.errors import PotstillError
from potstill.wording import counted

RECENT = 200
"""Steps that a loss is compared with."""

FEWEST = 50
"""Steps that are needed before a loss can be called a spike."""

DEVIATIONS = 7.0
"""A spike is so many standard deviations above the mean of the recent steps, as in OLMo 2 (2024, section 3)."""

MOST_SPIKES = 100
"""Spikes that are recorded. In a run with more of them, nobody reads the rest."""

MOST_KEPT = 1000
"""Steps whose losses stay on the device at most; then they are read although there is nothing to log."""

GRADIENT = "gradient"


@dataclass(frozen=True)
class Spike:
    """A step whose loss was far above those before it.

    Attributes:
        step: its number, from 1.
        loss: its loss.
        mean: mean loss of the recent steps.
        deviations: how many of their standard deviations the loss was above the mean.
    """

    step: int
    loss: float
    mean: float
    deviations: float

    def __str__(self) -> str:
        return (
            f"step {self.step:,}: the loss of {self.loss:.3f} is a spike, {self.deviations:.1f} standard deviations "
            f"above the mean of {self.mean:.3f} before it"
        )


class LossWatch:
    """Keeps the losses of each step on the device until they are read, so that no step waits for the device.

    Attributes:
        skipped: the steps whose losses or gradients were not finite, so that they changed no weight.
        spikes: the spikes so far.
    """

    def __init__(self) -> None:
        self.skipped: list[int] = []
        self.spikes: list[Spike] = []
        self._sums: dict[str, Tensor] = {}  # of the micro-batches of the current step
        self._micro_batches = 0
        self._unread: list[tuple[int, int, dict[str, Tensor]]] = []  # step, its micro-batches, and its sums
        self._read: list[dict[str, float]] = []  # since the last log
        self._recent: deque[float] = deque(maxlen=RECENT)

    @property
    def full(self) -> bool:
        """Whether there are so many unread steps that they should be read now."""
        return len(self._unread) >= MOST_KEPT

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the named losses of a micro-batch, each a scalar; one of them is `loss`."""
        for name, value in losses.items():
            before = self._sums.get(name)
            # A copy, because compiled code may write its next result to the same memory.
            self._sums[name] = value.detach().clone() if before is None else before + value.detach()
        self._micro_batches += 1

    def is_finite(self, gradient_norm: Tensor | float | None) -> Tensor:
        """Return a boolean scalar: whether the loss of the current step, and its gradient if given, are finite."""
        finite = torch.isfinite(self._sums["loss"])
        if gradient_norm is not None:
            finite = finite & torch.isfinite(torch.as_tensor(gradient_norm, device=finite.device))
        return finite

    def end_step(self, step: int, gradient_norm: Tensor | float | None) -> None:
        """Keep the losses of the current step, and the norm of its gradient if it is to be checked."""
        sums = self._sums
        if gradient_norm is not None:
            sums[GRADIENT] = torch.as_tensor(gradient_norm, device=sums["loss"].device)
        self._unread.append((step, self._micro_batches, sums))
        self._forget_step()

    def skip_step(self, step: int) -> None:
        """Count the current step as skipped. Its losses are left out of the log."""
        self.skipped.append(step)
        self._forget_step()

    def _forget_step(self) -> None:
        self._sums, self._micro_batches = {}, 0

    def read(self, mean_over_processes: Callable[[Tensor], Tensor]) -> tuple[int, list[str]] | None:
        """Read the steps since the last call from the device.

        Args:
            mean_over_processes: returns the mean of a tensor over all processes. A value that is not finite in one of
                them is so in the mean, and all processes see it.

        Returns:
            The first step that is not finite, and the names of its values that are not; None if all are finite.
        """
        if not self._unread:
            return None
        unread, self._unread = self._unread, []
        dtype = unread[0][2]["loss"].dtype
        scalars = [value.to(dtype) for _, _, sums in unread for value in sums.values()]
        values = iter(mean_over_processes(torch.stack(scalars)).tolist())
        for step, micro_batches, sums in unread:
            found = {name: next(values) for name in sums}
            bad = [name for name, value in found.items() if not math.isfinite(value)]
            if bad:
                return step, bad
            found.pop(GRADIENT, None)
            self._read.append({name: total / micro_batches for name, total in found.items()})
            self._look_for_spike(step, self._read[-1]["loss"])
        return None

    def _look_for_spike(self, step: int, loss: float) -> None:
        if len(self._recent) >= FEWEST and len(self.spikes) < MOST_SPIKES:
            recent = np.array(self._recent)
            mean = float(recent.mean())
            deviation = max(float(recent.std()), 1e-3 * abs(mean), 1e-12)  # losses may be all equal
            if loss > mean + DEVIATIONS * deviation:
                self.spikes.append(Spike(step, loss, mean, (loss - mean) / deviation))
        self._recent.append(loss)

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the steps that were read since the last call; NaN if there are none."""
        read, self._read = self._read, []
        if not read:
            return {"loss": math.nan}
        names = dict.fromkeys(name for values in read for name in values)
        return {name: statistics.fmean(values.get(name, 0.0) for values in read) for name in names}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must store. All steps must have been read."""
        spikes = [asdict(spike) for spike in self.spikes]
        return {"skipped": self.skipped, "spikes": spikes, "recent": [*self._recent], "unlogged": self._read}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.skipped = [*state["skipped"]]
        self.spikes = [Spike(**spike) for spike in state["spikes"]]
        self._recent = deque(state["recent"], maxlen=RECENT)
        self._read = [*state["unlogged"]]

    def record(self) -> dict[str, Any]:
        """Return what the results of a run say."""
        return {"skipped_steps": self.skipped, "loss_spikes": [asdict(spike) for spike in self.spikes]}


class EndOfStep(TrainerCallback):
    """Calls a function when the gradient of a step is complete, before the optimiser uses it."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call it."""
        self.function()


def bad_step(step: int, names: list[str]) -> str:
    """Return the beginning of a message about a step whose values of these names are not finite."""
    if "loss" not in names:
        return f"The {names[0]} at step {step} is not a finite number"
    terms = [name for name in names if name not in ("loss", GRADIENT)]
    listed = f" (nor {'is' if len(terms) == 1 else 'are'} {' and '.join(terms)})" if terms else ""
    return f"The loss at step {step} is not a finite number{listed}"


def not_finite(what: str, last: Path | None) -> PotstillError:
    """Return the error that stops a run: `what` is not finite, and `last` is the last good checkpoint."""
    remedy = "start again" if last is None else f"resume from the last good checkpoint, {last},"
    return PotstillError(
        f"{what}, so training stopped: {remedy} with a lower --learning_rate or a longer warm-up, or leave out such "
        "steps with --on_nan skip."
    )


def check_skips(skipped: list[int], most: int, last: Path | None) -> None:
    """Check that not too many steps were skipped.

    Raises:
        PotstillError: there are more than `most`. `last` is the last good checkpoint.
    """
    if len(skipped) <= most:
        return
    recent = ", ".join(map(str, skipped[-3:]))
    remedy = "start again" if last is None else f"resume from the last good checkpoint, {last},"
    raise PotstillError(
        f"{counted(len(skipped), 'step')} had a loss or gradient that is not a finite number (the last ones: "
        f"{recent}), more than "
        f"the {most} of --max_skipped_steps, so training stopped: {remedy} with a lower --learning_rate, or look for "
        "such numbers in the data."
    )
