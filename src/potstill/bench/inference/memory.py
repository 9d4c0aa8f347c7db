"""How much memory a process takes, and took at most."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> int:
    """Take what is resident now as the largest so far where the system lets one, and return it, in bytes."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    return _status("VmRSS") or peak()


def peak() -> int:
    """Return the largest resident size of this process, in bytes.

    Linux keeps what `getrusage` says of it over `exec`: a process that a large one has started would begin with the
    size of that one.
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
