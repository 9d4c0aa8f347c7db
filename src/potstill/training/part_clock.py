"""Times the parts of a training step, without waiting for the device inside a step."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch

# In the order of a step. "data" also includes the work of `Trainer` between steps, unless the device is still busy with
# earlier work during that time.
PARTS = ("data", "masking", "teacher", "student", "losses", "backward", "optimiser")


class PartClock:
    """Times rounds of steps, and the parts of these steps.

    On a CUDA device the end of a part is an event in the device's stream. The events are read after the round, and each
    costs some microseconds. The time of a part is then the device's time, including its waiting for the host. On other
    devices the host's clock is read. In both cases the parts add up to the round, because the same steps are measured.

    Attributes:
        rounds: seconds of each round by the host's clock, with the device synchronised at both ends.
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
        """Record that a part has ended and the next has begun. Between rounds this does nothing.

        It also does nothing while a CUDA graph is being recorded. A replayed graph is one part, which ends with the
        backward pass.
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
    """Wait until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
