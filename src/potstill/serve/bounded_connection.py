"""A connection that ends at a deadline, so that no slow client holds a thread for ever."""

from __future__ import annotations

import socket
import time
from io import RawIOBase
from typing import Any


class BoundedConnection(RawIOBase):
    """The bytes of a connection until a deadline, however few of them come at a time.

    A timeout of the socket alone begins anew with each byte.

    Attributes:
        deadline: of `time.monotonic`, in seconds. Reading and writing raise TimeoutError from then on.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, and wait for the first byte."""
        self._bound()
        return self.connection.recv_into(buffer)

    def write(self, content: Any) -> int:
        """Write all of the content."""
        self._bound()
        self.connection.sendall(content)
        return len(content)

    def _bound(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
