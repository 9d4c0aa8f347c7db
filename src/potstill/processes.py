"""The processes of one run, which a launcher such as `torchrun` starts."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from potstill.errors import PotstillError, first_line

_LAUNCHER: list[tuple[str, int]] = []  # address and port of the launcher's store, if the environment names another now
_HOSTED: list[Any] = []  # the store, if this process hosts it: it lasts as long as the process
_TASKS = itertools.count()  # all processes count the same tasks in the same order


def launched() -> bool:
    """Return whether this process is one of several that a launcher has started."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # the names accelerate knows
    return any(os.environ.get(name, "1").isdecimal() and int(os.environ.get(name, "1")) > 1 for name in names)


def first_to_fail() -> bool:
    """Return whether this process is the first of the run to fail. Only the first one prints a message.

    Otherwise each process would print an error that stops them all, and after an error of one process the others would
    report the lost connection. Each process may call this once. If the processes have no common store (there is no
    launcher, or it has ended), return True: printing a message twice is better than not printing it.
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
        what: a description of the work for messages, to follow the words "could not".
        work: the work, which only the first process calls.

    Raises:
        PotstillError: the work failed (all processes raise this), or the processes have no way to wait for each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        work()
        return
    key = f"potstill/once/{_attempt()}/{next(_TASKS)}"
    try:
        store = _store()
    except (ImportError, KeyError, ValueError, RuntimeError) as error:
        raise PotstillError(
            f"{os.environ['WORLD_SIZE']} processes could not {what} together, because their launcher gives them no "
            "store: do it before, in one process."
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


def open_new_store() -> None:
    """Make restarted processes use a new store, before they form their group.

    `torchrun` may keep its store when it restarts a run. It then holds the addresses of killed processes, and the new
    ones would wait for them for ever. So the first process opens a store of its own.
    """
    if int(_attempt()) == 0 or int(os.environ.get("WORLD_SIZE", "1")) <= 1 or _LAUNCHER:
        return
    try:
        store = _store()
    except (ImportError, KeyError, ValueError, RuntimeError):
        return  # forming the group will fail with a message
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
    """Return the store that all processes share: the launcher's, or else one that the first process hosts."""
    from torch.distributed import TCPStore

    address, port = _LAUNCHER[0] if _LAUNCHER else (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    options: dict[str, Any] = {"wait_for_workers": False, "timeout": timedelta(seconds=5)}
    if _first_hosts() and int(os.environ.get("RANK", "0")) == 0:
        if not _HOSTED:
            with suppress(RuntimeError):  # another program listens there: it may be the launcher's store after all
                _HOSTED.append(TCPStore(address, port, is_master=True, multi_tenant=True, **options))
        if _HOSTED:
            return _HOSTED[0]
    return TCPStore(address, port, is_master=False, **options)


def _first_hosts() -> bool:
    """Return whether the launcher leaves it to the first process to host the store at MASTER_PORT.

    PyTorch's default group shares such a store if it is made in the same process.
    """
    return not _LAUNCHER and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False"


def _attempt() -> str:
    """Return the number of the launcher's attempt, from 0. It distinguishes attempts that share a store.

    Machines that joined later have counted fewer attempts. This does no harm: with several machines whose number may
    change, each attempt has a store of its own.
    """
    if _first_hosts():
        return "0"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def leave_group() -> None:
    """Leave the group of processes that a training has made, if there is one, so that it ends cleanly."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
