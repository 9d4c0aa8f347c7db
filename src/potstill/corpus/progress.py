"""Show the progress of `prepare` on standard error."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS_PER_LINE = 10.0
"""Seconds between two lines if the output is no terminal."""


class PrepareProgress:
    """Show documents, megabytes, tokens and rates: one live line in a terminal, else a new line at intervals."""

    def __init__(self) -> None:
        self.documents = 0
        self.bytes = 0
        self.tokens = 0
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._start = time.monotonic()
        self._last_line = self._start

    def advance(self, documents: int, size: int, tokens: int) -> None:
        """Add the work that was done since the last call.

        Args:
            documents: number of documents.
            size: size of the documents in bytes.
            tokens: number of tokens of the documents.
        """
        self.documents += documents
        self.bytes += size
        self.tokens += tokens
        now = time.monotonic()
        if self._console.is_terminal:
            self._live.update(Text(self._line(now)))
        elif now - self._last_line >= SECONDS_PER_LINE:
            self._last_line = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        seconds = max(now - self._start, 1e-6)
        return (
            f"{self.documents:,} documents · {self.bytes / 1e6:,.1f} MB · {self.tokens:,} tokens · "
            f"{self.bytes / 1e6 / seconds:.1f} MB/s · {self.tokens / seconds:,.0f} tokens/s"
        )

    def __enter__(self) -> "PrepareProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
