"""The error of a process whose partner in a collective operation has ended, worded for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from potstill.arguments import RunArguments
from potstill.errors import PotstillError
from potstill.training.checkpoints import last_checkpoint, last_checkpoint_message

# The errors of gloo, PyTorch's back end for CPUs, have no type of their own.
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|socket|(read|write) error", re.IGNORECASE)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that another process of the run has ended, or does not answer."""
    text = str(error)
    return isinstance(error, DistError) or ("gloo" in text and bool(_LOST.search(text)))


@contextmanager
def connected(args: RunArguments) -> Iterator[None]:
    """Replace the error of a lost connection in the body by one that says what it means.

    Args:
        args: options of the run.

    Raises:
        PotstillError: another process of the run has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if args.world_size <= 1 or not is_lost_connection(error):
            raise
        last = last_checkpoint_message(last_checkpoint(args.output_dir))
        raise PotstillError(
            f"Process {args.process_index} of {args.world_size} cannot reach another one, which has ended or does not "
            f"answer, so training stopped; {last}."
        ) from error
