"""Running a command with its output where it can be seen, and its signals where they belong."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def run_words(words: list[str], environment: dict[str, str], prefix: str) -> int:
    """Run a command with its output where it can be seen, and return its exit status."""
    if not prefix:
        with subprocess.Popen(words, env=environment) as process, passing_signals(process):
            return _waited(process)
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(words, env=environment, text=True, errors="replace", **piped) as process:  # type: ignore[call-overload]
        _running.add(process)
        try:
            for line in process.stdout:
                print(f"{prefix}{line}", end="", flush=True)
            return _waited(process)
        finally:
            _running.discard(process)


_running: set[subprocess.Popen[Any]] = set()
_signalled: list[int] = []


@contextmanager
def passing_signals(process: subprocess.Popen[Any] | None = None) -> Iterator[None]:
    """Let runs end by themselves on Ctrl-C or SIGTERM, for a training then saves a checkpoint.

    Args:
        process: the run; those in `_running` if None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def passed(number: int, frame: FrameType | None) -> None:
        _signalled.append(number)
        for running in [process] if process is not None else list(_running):
            # A terminal sends Ctrl-C to all processes; a second one would end a training without its checkpoint.
            if number == signal.SIGTERM:
                running.terminate()

    _signalled.clear()
    before = {number: signal.signal(number, passed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _waited(process: subprocess.Popen[Any]) -> int:
    status = process.wait()
    # What a launcher makes of a signal differs; what this script was told does not.
    return 128 + _signalled[0] if status and _signalled else status if status >= 0 else 128 - status
