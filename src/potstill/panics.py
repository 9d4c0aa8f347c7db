"""Turn panics of libraries written in Rust into exceptions. Such a library mostly panics on a damaged file."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_ERROR = 2


class PanicError(RuntimeError):
    """A library written in Rust panicked on its input."""


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic. `except Exception` does not catch a panic."""
    return type(error).__name__ == "PanicException"  # every library has its own type of this name


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic of the body as a `PanicError`, and do not print Rust's backtrace.

    Without a panic, everything that the body writes to standard error is printed when the body ends.

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
