"""Electricity that GPUs take, from their own sensors if nvidia-smi can read them."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from types import TracebackType

INTERVAL_SECONDS = 1.0


class PowerMeter:
    """Integrates the power of some GPUs over time. The machine around the GPUs is not included.

    Args:
        gpus: GPUs to measure, named as in `CUDA_VISIBLE_DEVICES`; an empty list for no measurement.

    Attributes:
        joules: energy between entering and leaving the context; None if it was not measured.
    """

    def __init__(self, gpus: list[str]) -> None:
        self.gpus = gpus
        self.joules: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerMeter:
        if self.gpus and watts(self.gpus) is not None:
            self.joules = 0.0
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        before, power = time.monotonic(), watts(self.gpus)
        while self.joules is not None:
            stopped = self._stop.wait(INTERVAL_SECONDS)
            now, measured = time.monotonic(), watts(self.gpus)
            if measured is None or power is None:  # a partial measurement would look like a complete one
                self.joules = None
                return
            self.joules += (now - before) * (power + measured) / 2
            before, power = now, measured
            if stopped:
                return


def watts(gpus: list[str]) -> float | None:
    """Return the power that GPUs take together now, in watts; None if it cannot be read."""
    try:
        found = [float(value) for value in nvidia_smi("power.draw", gpus)]
    except ValueError:  # "[N/A]": the driver does not report power
        return None
    return sum(found) if len(found) == len(gpus) else None


def visible_gpus(count: int) -> list[str]:
    """Return the first `count` GPUs that programs see, named as in `CUDA_VISIBLE_DEVICES`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(count)])[:count]


def nvidia_smi(field: str, gpus: list[str] | None = None) -> list[str]:
    """Return a field of nvidia-smi for each GPU; an empty list if the program is missing or fails."""
    chosen = ["--id=" + ",".join(gpus)] if gpus else []
    try:
        found = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", *chosen],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]
