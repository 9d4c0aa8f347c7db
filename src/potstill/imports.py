"""Imports of large libraries."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
