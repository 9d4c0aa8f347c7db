"""Run a command, show its output, and pass signals on to it."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def run_command(command: list[str], environment: dict[str, str], prefix: str) -> int:
    """Run a command, print its output with a prefix before each line, and return its exit status."""
    if not prefix:
        with subprocess.Popen(command, env=environment) as process, passing_signals(process):
            return _exit_status(process)
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, errors="replace", **piped) as process:  # type: ignore[call-overload]
        _running.add(process)
        try:
            for line in process.stdout:
                print(f"{prefix}{line}", end="", flush=True)
            return _exit_status(process)
        finally:
            _running.discard(process)


_running: set[subprocess.Popen[Any]] = set()
_signalled: list[int] = []


@contextmanager
def passing_signals(process: subprocess.Popen[Any] | None = None) -> Iterator[None]:
    """Let runs end by themselves on Ctrl-C or SIGTERM, so that a training can save a checkpoint.

    Args:
        process: the process of the run; None for all processes in `_running`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        _signalled.append(number)
        for running in [process] if process is not None else list(_running):
            # A terminal sends Ctrl-C to all processes; a second one would end a training without its checkpoint.
            if number == signal.SIGTERM:
                running.terminate()

    _signalled.clear()
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_status(process: subprocess.Popen[Any]) -> int:
    status = process.wait()
    # The exit status of a launcher after a signal varies, so the signal that this script received decides.
    return 128 + _signalled[0] if status and _signalled else status if status >= 0 else 128 - status
