"""The first SIGINT, SIGTERM or SIGUSR1 ends a run after the current step. A second SIGINT or SIGTERM ends it at once.

SIGUSR1 is a warning: job queues such as Slurm send it some time before SIGTERM, and may send it several times.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WARNING = getattr(signal, "SIGUSR1", None)  # Windows has no such signal
ENDING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, WARNING) if number is not None)


class SignalCatcher:
    """Records a signal instead of ending the process.

    Attributes:
        received: number of the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Catch signals while the body runs. It needs the main thread.

        A second signal raises KeyboardInterrupt with its number, unless one of the two is SIGUSR1.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def record(number: int, frame: FrameType | None) -> None:
            if WARNING not in (self.received, number) and self.received is not None:
                raise KeyboardInterrupt(number)
            if self.received in (None, WARNING):
                self.received = number

        previous = {number: signal.signal(number, record) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
