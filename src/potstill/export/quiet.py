"""Keeps the output of libraries off the terminal."""

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
    """Silence Python's warnings, the loggers of libraries, standard output and standard error.

    Exceptions pass, so no error is lost. The caller reports the outcome in one sentence.
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
    """Redirect the process's file descriptors 1 and 2 to the null device, because libraries in C++ write there."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, "w") as null_device:
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(null_device.fileno(), number)
            yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
