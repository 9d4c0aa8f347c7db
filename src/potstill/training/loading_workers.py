"""Workers of a DataLoader that outlive a signal to all processes of a run: the run needs them to end its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

SEVERAL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name))


def outliving_signals(loader: Any) -> Any:
    """Let the workers of a loader ignore the signals that end a run, unless their parent sends SIGTERM.

    torchrun, Slurm and a terminal send a signal to all processes of a run. A worker of PyTorch dies of SIGTERM. Then
    the run fails inside its step, before it has saved a checkpoint. Workers end as always when the loader closes them
    or their parent is gone.

    Args:
        loader: a DataLoader, or accelerate's wrapper of one, that has not started workers yet.
    """
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = partial(_start, inner.worker_init_fn)
    return loader


def _start(start: Callable[[int], None] | None, worker: int) -> None:
    for number in SEVERAL:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # All threads of the worker that start later inherit the mask, so only the thread below gets the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(os.getppid(),), daemon=True).start()
    if start is not None:
        start(worker)


def _end_by(parent: int) -> None:
    """End this process at a SIGTERM of its parent, which closes a loader so if a worker does not end by itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
