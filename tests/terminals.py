"""A pseudo-terminal in the place of standard error, for tests of what a person sees there."""

import os
import pty
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from potstill import live_line

Terminal = Callable[[], Callable[[], str]]
HIDES_CURSOR = "\x1b[?25l"
CODE = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator["Terminal"]:
    """Return what makes standard error a terminal of 120 columns; it returns what reads what was written to it."""
    master, slave = pty.openpty()
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(live_line, "SECONDS_PER_CHANGE", 0.0)
    os.set_blocking(master, False)
    stream = os.fdopen(slave, "w")

    def written() -> str:
        found = b""
        try:
            while piece := os.read(master, 65536):
                found += piece
        except BlockingIOError:
            return found.decode().replace("\r\n", "\n")
        raise AssertionError("the terminal was closed")

    def begin() -> Callable[[], str]:
        monkeypatch.setattr(sys, "stderr", stream)  # not before the test itself begins, when pytest sets its own
        return written

    yield begin
    stream.close()
    os.close(master)


def scrolled(written: str) -> list[str]:
    """Return the lines that stay on the screen: without those that were erased or written over."""
    written = re.sub(r"[^\n]*\n\r\x1b\[1A\x1b\[2K", "", written)
    return [CODE.sub("", line.split("\x1b[2K")[-1]) for line in written.split("\n") if line]
