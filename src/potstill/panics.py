"""Libraries written in Rust panic where they meet what their authors held impossible: a damaged file, mostly."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_ERROR = 2


class PanicError(RuntimeError):
    """A library written in Rust has given up on its input."""


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic. It is not an `Exception`, so that `except Exception` lets it pass."""
    return type(error).__name__ == "PanicException"  # every library brings a type of its own, of this name


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic of the body as a `PanicError`, and keep the backtrace that Rust prints off the terminal.

    What else the body writes to standard error is written when it ends.

    Raises:
        PanicError: a library panicked; the message is the library's.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        terminal = os.dup(STANDARD_ERROR)
        panicked = False
        os.dup2(held.fileno(), STANDARD_ERROR)
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            if panicked:
                raise PanicError(str(error)) from error
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, STANDARD_ERROR)
            if not panicked:
                held.seek(0)
                while part := held.read(1 << 16):
                    os.write(terminal, part)
            os.close(terminal)
