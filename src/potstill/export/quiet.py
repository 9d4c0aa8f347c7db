"""Keeping what libraries print of their own progress off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

LOGGERS = ("torch.onnx", "onnxscript", "root", "", "nncf", "coremltools", "torch.export", "executorch")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Python's warnings, loggers, standard output and error, for what the caller says of it in one sentence.

    Exceptions pass, so nothing is lost but chatter.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            _no_native_output(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _no_native_output() -> Iterator[None]:
    """Point the process's own descriptors 1 and 2 at nothing, for libraries in C++ write there."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, "w") as nothing:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(nothing.fileno(), number)
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
