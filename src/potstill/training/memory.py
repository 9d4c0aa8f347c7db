"""A batch that does not fit into memory: how much it needed, how much was free, and which option to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from potstill.arguments import RunArguments
from potstill.errors import PotstillError
from potstill.training.checkpoints import last_checkpoint, what_is_left

# Not every allocation that fails is a `torch.OutOfMemoryError`: not the CPU's, Apple's, or those of CUDA's libraries.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_ASKED = re.compile(r"tried to allocate (\d+(?:\.\d+)?) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@contextmanager
def fitting_memory(args: RunArguments, evaluation: bool = False) -> Iterator[None]:
    """Tell what to lower when what the body allocates does not fit.

    Args:
        args: the run's device, batch sizes and output folder.
        evaluation: whether the body evaluates, rather than trains.

    Raises:
        PotstillError: in place of the error of the device's allocator; checkpoints are as they were.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        what, mend = ("batch of the evaluation", _mend_evaluation) if evaluation else ("training step", _mend_step)
        memory = f"the memory of {torch.cuda.get_device_name(args.device)}" if args.device.type == "cuda" else "memory"
        left = what_is_left(last_checkpoint(args.output_dir))
        figures = _figures(str(error), args.device)
        raise PotstillError(f"A {what} does not fit into {memory}{figures}; {mend(args)}; {left}.") from error


def _mend_step(args: RunArguments) -> str:
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if size == 1:
        return args.smallest_batch
    return (
        f"lower --per_device_train_batch_size (now {size}) and raise --gradient_accumulation_steps (now {accumulated}) "
        "by as much to keep the optimiser's batch"
    )


def _mend_evaluation(args: RunArguments) -> str:
    if args.per_device_eval_batch_size == 1:
        return args.smallest_batch
    return f"lower --per_device_eval_batch_size (now {args.per_device_eval_batch_size})"


def _figures(message: str, device: torch.device) -> str:
    """Return what was asked for, in use and free, as far as it can be known."""
    asked = _ASKED.search(message)
    parts = []
    if asked:
        parts.append(f"asked for {_size(float(asked[1]) * _UNITS[asked[2][0].lower()])} more")
    if device.type == "cuda":
        parts.append(f"had used up to {_size(torch.cuda.max_memory_allocated(device))}")
    said = f": it {' and '.join(parts)}" if parts else ""
    memory = _free_and_total(device)
    if memory:
        said += f"{', with' if parts else ':'} {_size(memory[0])} free of {_size(memory[1])}"
    return said


def _free_and_total(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes that are free on a device and those it has; None where nobody says."""
    try:
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)
        if device.type == "cpu":
            lines = Path("/proc/meminfo").read_text().splitlines()
            kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
            return kilobytes["MemAvailable"] * 2**10, kilobytes["MemTotal"] * 2**10
    except (RuntimeError, OSError, KeyError, ValueError):
        pass
    return None


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
