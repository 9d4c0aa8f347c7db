"""Keep freed memory for the next step of a training on a CPU, instead of returning it to the operating system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# Parameters of glibc's `mallopt`, from <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER = -1
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc raises its thresholds to these by itself, once blocks so large are freed
DEFAULT_MMAP_MAX = 65_536


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep the memory that the body frees in the process, if the device is a CPU and the C library is glibc.

    glibc returns every large block to the operating system when it is freed. A training step frees all activations and
    asks for as many again in the next step. The system then clears every page at its first use, which took up to
    19 % of a step. After the body, what is free is returned. Kept blocks do not always fit the next tensor, so the
    process needs 8 to 16 % more memory at its peak.
    """
    mallopt = _function("mallopt") if device.type == "cpu" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        if (trim := _function("malloc_trim")) is not None:
            trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None if it has no such function."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # other systems: musl, macOS, Windows
        return None
