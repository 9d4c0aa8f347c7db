"""The processes of one run, as launchers such as `torchrun` start them."""

from __future__ import annotations

import os
import sys
from datetime import timedelta


def first_to_fail() -> bool:
    """Return whether no other process of this run has failed before this one, which then speaks for all.

    What stops all processes would otherwise be printed by each of them, and what stops one would be followed by the
    complaints of the others about the lost connection. Each process is to ask once. Where the processes have no store
    in common (no launcher, or one that went away), the answer is yes: better told twice than not at all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return True
    try:
        from torch.distributed import TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives a restart by the launcher
        return store.add(f"potstill/failed/{attempt}", 1) == 1
    except (ImportError, KeyError, ValueError, RuntimeError):
        return True


def leave_group() -> None:
    """Leave the group of processes that a training has made, if there is one, so that the others need not guess."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
