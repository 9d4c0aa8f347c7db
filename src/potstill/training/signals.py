"""The first SIGINT or SIGTERM ends a run after the current step. The second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class SignalCatcher:
    """Records a signal instead of ending the process.

    Attributes:
        received: number of the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Catch signals while the body runs. A second signal raises KeyboardInterrupt. It needs the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def record(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                raise KeyboardInterrupt
            self.received = number

        previous = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
