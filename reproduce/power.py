"""Electricity that GPUs take, by their own sensors where nvidia-smi reads them."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from types import TracebackType

INTERVAL_SECONDS = 1.0


class PowerMeter:
    """Integrates over time the power that some GPUs take; the machine around them is not in it.

    Args:
        gpus: which, as `CUDA_VISIBLE_DEVICES` numbers them; none for no measurement.

    Attributes:
        joules: taken in between entering and leaving; None where it was not measured.
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
            if measured is None or power is None:  # half a measurement would pass for a whole one
                self.joules = None
                return
            self.joules += (now - before) * (power + measured) / 2
            before, power = now, measured
            if stopped:
                return


def watts(gpus: list[str]) -> float | None:
    """Return the power that GPUs take together now, None where it cannot be read."""
    try:
        found = [float(value) for value in nvidia_smi("power.draw", gpus)]
    except ValueError:  # "[N/A]", where the driver does not tell
        return None
    return sum(found) if len(found) == len(gpus) else None


def visible_gpus(count: int) -> list[str]:
    """Return the first so many of the GPUs that programs see, by the names that `CUDA_VISIBLE_DEVICES` has for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(count)])[:count]


def nvidia_smi(field: str, gpus: list[str] | None = None) -> list[str]:
    """Return what nvidia-smi says of each GPU, nothing where there is no such program."""
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
