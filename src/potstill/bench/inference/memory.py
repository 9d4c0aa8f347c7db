"""Measures the memory of this process: the current resident size and the largest one."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> int:
    """Reset the largest resident size to the current one, if the system allows it, and return it, in bytes."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    return _status("VmRSS") or peak()


def peak() -> int:
    """Return the largest resident size of this process, in bytes.

    On Linux `getrusage` keeps its value over `exec`: a process that a large process started would begin with the size
    of that process. So `/proc` is read if it exists.
    """
    if (found := _status("VmHWM")) is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 2**10


def _status(name: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 2**10 for line in lines if line.startswith(f"{name}:")), None)
