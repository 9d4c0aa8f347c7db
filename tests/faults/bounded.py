"""Run a call in a process of its own with little memory and little time, as hostile input would like to take all."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from potstill.errors import PotstillError


def refused(call: Callable[[], object], megabytes: int = 1024, seconds: int = 60) -> str:
    """Return the message of the `PotstillError` that a call raises.

    Args:
        call: what has to be refused.
        megabytes: address space that it may take beyond that of this process.
        seconds: time that it may take.
    """
    here, there = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process
        signal.alarm(seconds)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        try:
            answer = f"it was accepted and gave {call()!r:.200}"
        except PotstillError as error:
            answer = ("refused", str(error))
        except BaseException as error:
            answer = f"it raised {type(error).__name__}: {error!s:.500}"
        os.write(there, pickle.dumps(answer)[:60_000])
        os._exit(0)
    os.close(there)
    with open(here, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    lasted = time.monotonic() - started
    assert content, f"it was ended by {os.waitstatus_to_exitcode(status)} after {lasted:.0f} seconds"
    answer = pickle.loads(content)
    assert isinstance(answer, tuple), answer
    message: str = answer[1]
    assert "\n" not in message, message
    assert len(message) < 1500, message
    return message


def sparse(path: Path, gigabytes: int = 10) -> Path:
    """Make a file of this size that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(gigabytes * 2**30)
    return path
