"""Errors for a batch that does not fit into memory: its size, the free memory, and which option to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from potstill.arguments import RunArguments
from potstill.errors import PotstillError
from potstill.training.checkpoints import last_checkpoint, last_checkpoint_message

# Failed allocations on a CPU, on Apple's GPUs and in CUDA's libraries do not raise `torch.OutOfMemoryError`.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_ASKED = re.compile(r"tried to allocate (\d+(?:\.\d+)?) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@contextmanager
def fitting_memory(args: RunArguments, evaluation: bool = False) -> Iterator[None]:
    """Replace an out-of-memory error of the body by one that says which option to lower.

    Args:
        args: options of the run: its device, batch sizes and output folder.
        evaluation: True if the body evaluates, False if it trains.

    Raises:
        PotstillError: the body ran out of memory. Existing checkpoints are unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        what, remedy = ("training step", _step_remedy(args))
        if evaluation:
            what, remedy = ("batch of the evaluation", _evaluation_remedy(args))
        memory = f"the memory of {torch.cuda.get_device_name(args.device)}" if args.device.type == "cuda" else "memory"
        last = last_checkpoint_message(last_checkpoint(args.output_dir))
        figures = _figures(str(error), args.device)
        raise PotstillError(f"A {what} does not fit into {memory}{figures}; {remedy}; {last}.") from error


def _step_remedy(args: RunArguments) -> str:
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if size == 1:
        return args.smallest_batch
    return (
        f"lower --per_device_train_batch_size (now {size}) and raise --gradient_accumulation_steps (now {accumulated}) "
        "by the same factor, which keeps the batch of the optimiser"
    )


def _evaluation_remedy(args: RunArguments) -> str:
    if args.per_device_eval_batch_size == 1:
        return args.smallest_batch
    return f"lower --per_device_eval_batch_size (now {args.per_device_eval_batch_size})"


def _figures(message: str, device: torch.device) -> str:
    """Return how much memory was requested, in use and free, as far as this is known."""
    asked = _ASKED.search(message)
    parts = []
    if asked:
        parts.append(f"asked for {_size(float(asked[1]) * _UNITS[asked[2][0].lower()])} more")
    if device.type == "cuda":
        parts.append(f"had used up to {_size(torch.cuda.max_memory_allocated(device))}")
    text = f": it {' and '.join(parts)}" if parts else ""
    memory = _free_and_total(device)
    if memory:
        text += f"{', with' if parts else ':'} {_size(memory[0])} free of {_size(memory[1])}"
    return text


def _free_and_total(device: torch.device) -> tuple[int, int] | None:
    """Return the free and the total memory of a device, in bytes; None if unknown."""
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
