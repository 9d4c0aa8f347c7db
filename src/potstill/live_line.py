"""How far the work is, on standard error: one line that changes in place on a terminal, or a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SECONDS_PER_LINE = 10.0
"""Least time between two lines where there is no terminal, such as in a pipe, in a file or in CI."""
SECONDS_PER_CHANGE = 0.25
"""Least time between two changes of the line on a terminal."""
LEAST_BAR, LONGEST_BAR = 10, 30
"""Columns of the bar. A terminal that has less room for it shows none."""


def duration(seconds: float) -> str:
    """Return seconds as ``1:02:03``, or ``2:03`` under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def say(line: str) -> None:
    """Print a line to standard error.

    If the line cannot be printed, the work goes on, and nothing more is printed there. The reader of a pipe may have
    ended, or standard error is a file on a full disk.
    """
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _stop_printing()


def _stop_printing() -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())


class _Terminal(Console):
    """Leaves the cursor shown, so that it is there even after a process that was killed, and breaks no line."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print without new line ends, so that a long path can be copied from the terminal."""
        super().print(*objects, **{"soft_wrap": True} | options)

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        return False


class LiveLine:
    """Shows how far some work is; use it as a context manager.

    On a terminal one line changes in place, with a bar. Other lines that are printed to standard error meanwhile
    scroll above it. If the work is part of another work that has a line, it is shown at the end of that line.
    Elsewhere lines are printed, at most one in `SECONDS_PER_LINE`.

    Args:
        wait: whether the first line comes only after `SECONDS_PER_LINE`, so that short work prints none.

    Attributes:
        live: whether there is a terminal that can change a line.
    """

    _shown: ClassVar[LiveLine | None] = None

    def __init__(self, wait: bool = True) -> None:
        self._console = _Terminal(stderr=True)
        self.live = sys.stderr.isatty() and self._console.is_terminal and not self._console.is_dumb_terminal
        self._started = time.monotonic()
        self._printed = self._started if wait else float("-inf")
        self._changed = float("-inf")
        self._pending = ""
        self._share: float | None = None
        self._parts: Sequence[str] = ()
        self._inner: Sequence[str] = ()
        self._outer: LiveLine | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self.live:
            return self
        self._outer = LiveLine._shown
        if self._outer is None:
            LiveLine._shown = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the work began; never 0."""
        return max(time.monotonic() - self._started, 1e-6)

    def left(self, share: float) -> str:
        """Return how long the rest takes if it is as fast as the share that is done; an empty text for no share."""
        return f"{duration(self.seconds * (1 - share) / share)} left" if share > 0 else ""

    @property
    def due(self) -> bool:
        """Whether `update` would show or print something now."""
        if self.live:
            return time.monotonic() - self._changed >= SECONDS_PER_CHANGE
        return time.monotonic() - self._printed >= SECONDS_PER_LINE

    def update(self, share: float | None, parts: Sequence[str], line: str | None = None) -> None:
        """Say how far the work is. This takes some microseconds unless it is `due`.

        Args:
            share: of the work that is done, from 0 to 1, for the bar on a terminal; None for no bar.
            parts: what a terminal shows, the most important first. Those that do not fit are left out.
            line: what is printed elsewhere, by default the parts; if it is empty, the line before stays the last one.
        """
        self._share, self._parts = share, [part for part in parts if part]
        self._pending = (" · ".join(self._parts) if line is None else line) or self._pending
        if not self.due:
            return
        if self.live:
            self._changed = time.monotonic()
            self._refresh()
        else:
            self.flush()

    def update_count(self, done: int, whole: int, unit: str, name: str = "") -> None:
        """Say how much is done of work that is counted; at its end nothing more is shown.

        Args:
            done: number that is done.
            whole: number of all.
            unit: of both, in the plural.
            name: of the work, put in front.
        """
        if done < whole:
            share = done / whole
            shown = f"{name}{done:,} of {whole:,} {unit} ({share:.0%})"
            self.update(share, [shown, self.left(share), f"{done / self.seconds:,.0f} {unit}/s"])

    def _refresh(self) -> None:
        if self._outer is not None:
            self._outer._inner = self._parts
            self._outer._refresh()
            return
        try:
            self._draw()
        except OSError:  # the terminal was closed
            _stop_printing()

    def _draw(self) -> None:
        if self._live is None:
            # No thread refreshes the line: a process that is forked meanwhile could not take that thread's lock. What
            # is printed to standard output, perhaps a file, stays there.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                get_renderable=self._renderable,
            )
            self._live.start()
        self._live.refresh()

    def flush(self) -> None:
        """Print the last line for good if it was not printed yet, also on a terminal."""
        if self._pending:
            self._printed = time.monotonic()
            say(self._pending)
            self._pending = ""

    def stop(self) -> None:
        """Remove the line from the terminal."""
        if self._outer is not None:
            self._outer._inner = ()
        if self._live is not None:
            try:
                self._live.stop()
            except OSError:
                _stop_printing()
            self._live = None
        if LiveLine._shown is self:
            LiveLine._shown = None

    def _renderable(self) -> RenderableType:
        text, width = "", self._console.width - 1
        for part in (*self._parts, *self._inner):
            longer = f"{text} · {part}" if text else part
            if text and cell_len(longer) > width:
                break
            text = longer
        shown = Text(text, no_wrap=True)
        shown.truncate(width, overflow="ellipsis")
        room = min(LONGEST_BAR, width - cell_len(text) - 1)
        if self._share is None or room < LEAST_BAR:
            return shown
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=1.0, completed=self._share, width=room), shown)
        return grid
