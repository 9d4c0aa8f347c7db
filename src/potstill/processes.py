"""The processes of one run, as launchers such as `torchrun` start them."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from potstill.errors import PotstillError, first_line

_LAUNCHER: list[tuple[str, int]] = []  # address and port of the launcher's store, once the environment names another
_TASKS = itertools.count()  # every process counts the same tasks in the same order


def launched() -> bool:
    """Return whether a launcher has started several processes, of which this is one."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # those that accelerate knows
    return any(os.environ.get(name, "1").isdecimal() and int(os.environ.get(name, "1")) > 1 for name in names)


def first_to_fail() -> bool:
    """Return whether no other process of this run has failed before this one, which then speaks for all.

    What stops all processes would otherwise be printed by each of them, and what stops one would be followed by the
    complaints of the others about the lost connection. Each process is to ask once. Where the processes have no store
    in common (no launcher, or one that went away), the answer is yes: better told twice than not at all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return True
    try:
        return _store().add(f"potstill/failed/{_attempt()}", 1) == 1
    except (ImportError, KeyError, ValueError, RuntimeError):
        return True


def once(what: str, work: Callable[[], None]) -> None:
    """Do work in the first process of a launch, while the others wait until it is done.

    Args:
        what: the work in words, to follow "could not": for messages.
        work: called in the first process alone.

    Raises:
        PotstillError: the work failed, in every process; or the processes have no way to wait for each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        work()
        return
    key = f"potstill/once/{_attempt()}/{next(_TASKS)}"
    try:
        store = _store()
    except (ImportError, KeyError, ValueError, RuntimeError) as error:
        raise PotstillError(
            f"{os.environ['WORLD_SIZE']} processes could not {what} together, for their launcher gives them no store: "
            "do it before, in one process."
        ) from error
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            work()
        except BaseException as error:
            store.set(key, f"failed: {error if isinstance(error, PotstillError) else first_line(error)}")
            raise
        store.set(key, "done")
        return
    while not store.check([key]):
        time.sleep(0.2)
    result = store.get(key).decode()
    if result != "done":
        raise PotstillError(result.removeprefix("failed: "))


def meet_anew() -> None:
    """Let the processes that a launcher restarts find each other, before they form their group.

    `torchrun` may keep its store when it restarts a run. The addresses that the killed processes wrote there would
    lead the new ones to nobody, and they would wait for ever. So the first process opens a store of its own.
    """
    if int(_attempt()) == 0 or int(os.environ.get("WORLD_SIZE", "1")) <= 1 or _LAUNCHER:
        return
    try:
        store = _store()
    except (ImportError, KeyError, ValueError, RuntimeError):
        return  # the group's own message tells what is wrong
    key = f"potstill/port/{_attempt()}"
    if int(os.environ.get("RANK", "0")) == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(key, str(free.getsockname()[1]))
    store.wait([key], timedelta(minutes=10))
    _LAUNCHER.append((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    os.environ["MASTER_PORT"] = store.get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _store() -> Any:
    """Return the launcher's store, which all processes share."""
    from torch.distributed import TCPStore

    address, port = _LAUNCHER[0] if _LAUNCHER else (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))


def _attempt() -> str:
    """Return the number of the launcher's attempt, from 0: its store outlives a restart."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def leave_group() -> None:
    """Leave the group of processes that a training has made, if there is one, so that the others need not guess."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
