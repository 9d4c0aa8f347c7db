"""What a verb needs of the process that it runs in: open streams, a current folder, and Python with its docstrings."""

from __future__ import annotations

import os
import sys

from potstill.errors import PotstillError, first_line


def open_closed_streams() -> None:
    """Open standard input, output and error on the null device where the caller has closed them.

    Otherwise the next files that are opened get their numbers. Libraries in C++ that print would then write into a
    model, and what redirects standard error would close the lock of a folder.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def check_surroundings() -> None:
    """Check what the libraries assume when they are imported.

    Raises:
        PotstillError: the current folder was removed, or Python runs without docstrings.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise PotstillError(
            f"the current folder cannot be read ({error.strerror or first_line(error)}), perhaps because it was "
            "removed: change to another folder (cd)."
        ) from error
    if sys.flags.optimize > 1:
        raise PotstillError(
            "Python runs without docstrings, which transformers needs to load a model: unset PYTHONOPTIMIZE, or start "
            "Python without -OO."
        )
