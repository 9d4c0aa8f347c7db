"""Workers of a DataLoader that outlive a signal to all processes of a run: the run needs them to end its step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

SEVERAL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name))


def outliving_signals(loader: Any) -> Any:
    """Let the workers of a loader ignore the signals that end a run, unless this process sends SIGTERM.

    torchrun, Slurm and a terminal send a signal to all processes of a run. A worker of PyTorch dies of SIGTERM. Then
    the run fails inside its step, before it has saved a checkpoint. Workers end as always when the loader closes them
    or their parent is gone.

    On Linux the workers are forks of this process, unless `--dataloader_multiprocessing_context` says otherwise. From
    Python 3.14 on they would be children of a server process. That server dies of the signal, and its workers with it.
    A worker that is no fork has threads of libraries before it can ignore SIGTERM, and may die of it.

    Args:
        loader: a DataLoader, or accelerate's wrapper of one, that has not started workers yet, or that was here before.
    """
    inner = getattr(loader, "base_dataloader", loader)
    if getattr(inner.worker_init_fn, "func", None) is _start:  # `Trainer` may keep a loader for the next evaluation
        return loader
    inner.worker_init_fn = partial(_start, inner.worker_init_fn, os.getpid())
    if inner.num_workers and inner.multiprocessing_context is None and sys.platform == "linux":
        inner.multiprocessing_context = "fork"
    return loader


def _start(start: Callable[[int], None] | None, run: int, worker: int) -> None:
    for number in SEVERAL:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # All threads of the worker that start later inherit the mask, so only the thread below gets the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(run,), daemon=True).start()
    if start is not None:
        start(worker)


def _end_by(run: int) -> None:
    """End this process at a SIGTERM of the run, which closes a loader so if a worker does not end by itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
