"""Imports of large libraries."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from potstill.option_table import function_of

_BEFORE_TORCH = "torch" not in sys.modules
"""Whether this module was imported before torch, as on the command line."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection.

    torch and transformers make hundreds of thousands of objects that live to the end. The collector would go through
    all of them again and again, and free nothing. On the command line it leaves them out later too. Another program
    that has imported torch may hold garbage already, which would then never be freed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _BEFORE_TORCH:
            gc.freeze()
        if enabled:
            gc.enable()


def call(where: str, *arguments: Any) -> None:
    """Import a function, and call it: the target of a new process.

    Args:
        where: the function as "module:function".
        arguments: of the function.
    """
    with quick_imports():
        function = function_of(where)
    function(*arguments)
