"""When each part of a step ended, without waiting for the device inside a step."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch

# In the order in which they happen. "data" also has what `Trainer` does between steps, where that is not hidden behind
# work that the device still has.
PARTS = ("data", "masking", "teacher", "student", "losses", "backward", "optimiser")


class PartClock:
    """Times rounds of steps, and within them the parts that the steps are made of.

    On a CUDA device the end of a part is an event in its stream, read when the round is over: a part is then what the
    device spent on it, waiting for the host included, and noting it costs some microseconds. Elsewhere the host's own
    clock is read. Either way the parts add up to the round, so they are measured in the very steps that are timed.

    Attributes:
        rounds: seconds of each round, by the host's clock, the device synchronised at both ends.
        parts: seconds of each part over all rounds.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rounds: list[float] = []
        self.parts = dict.fromkeys(PARTS, 0.0)
        self._marks: list[tuple[str, Any]] = []
        self._started = 0.0

    def start(self) -> None:
        """Begin a round."""
        synchronise(self.device)
        self._started = time.perf_counter()
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """Note that a part has ended, and the next begun; between rounds, do nothing.

        Nor inside a CUDA graph that is being recorded: what is replayed is one part, and ends with the backward pass.
        """
        if self._marks and not (self._on_cuda and torch.cuda.is_current_stream_capturing()):
            self._marks.append((part, self._now()))

    def stop(self) -> None:
        """End a round."""
        synchronise(self.device)
        self.rounds.append(time.perf_counter() - self._started)
        for (_, begin), (part, end) in pairwise(self._marks):
            seconds = begin.elapsed_time(end) / 1000 if self._on_cuda else end - begin
            self.parts[part] = self.parts.get(part, 0.0) + seconds
        self._marks = []

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
