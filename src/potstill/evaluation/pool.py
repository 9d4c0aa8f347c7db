"""Does runs one after another in this process, or several at a time in processes that share the GPUs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch
from transformers.utils import logging

from potstill.errors import PotstillError
from potstill.evaluation.results import RunResult
from potstill.evaluation.run import PlannedRun, do
from potstill.imports import call
from potstill.live_line import LiveLine

SizedRun = tuple[PlannedRun, float]
"""A run, and an estimate of its time in an arbitrary unit."""


class EvaluationProgress(LiveLine):
    """Prints a line for each finished run: the number of finished runs, the score, and the time left.

    A terminal shows the current run too.

    Args:
        size: sum of the sizes of the runs that are not done yet, in the unit of `SizedRun`.
        count: number of all runs.
        done: number of runs that were done before.
    """

    def __init__(self, size: float, count: int, done: int) -> None:
        self.size, self.count, self.done = size, count, done
        self.size_done = 0.0
        super().__init__()

    def show(self, run: PlannedRun | str = "") -> None:
        """Show which run goes on, on a terminal."""
        share = self.size_done / max(self.size, 1e-9)
        self.update(share, [f"{self.done} of {self.count} runs", self.left(share), str(run)], line="")

    def log(self, run: PlannedRun | str, size: float, outcome: RunResult | str) -> None:
        """Count a run as done, and print its score, or the reason why it has no result."""
        self.done += 1
        self.size_done += size
        if isinstance(outcome, RunResult):
            message = f"score {outcome.score:.1f} · {sum(outcome.seconds.values()):.0f} s"
        else:
            message = f"no score: {outcome}"
        left = self.left(min(1.0, self.size_done / max(self.size, 1e-9)))
        print(f"[{self.done}/{self.count}] {run} · {message}{left and f' · {left}'}", file=sys.stderr, flush=True)
        self.show()


def do_here(planned: Sequence[SizedRun], progress: EvaluationProgress) -> None:
    """Do runs one after another in this process; see `RunPool.do_all`."""
    for run, size in planned:
        outcome: RunResult | str
        progress.show(run)
        try:
            outcome = do(run)
        except PotstillError as error:
            if error.exit_status > 128:
                raise interrupted(error.exit_status) from error
            if not run.may_fail:
                raise failed(run, str(error)) from error
            outcome = str(error)
        except KeyboardInterrupt as error:
            raise interrupted() from error
        progress.log(run, size, outcome)


@dataclass
class _Worker:
    """A process, this end of the connection to it, and its current run."""

    process: SpawnProcess
    connection: Connection
    current: SizedRun


class RunPool:
    """Does runs in processes that share the GPUs, or in this process if no two runs go on at a time.

    A process starts when a run needs it. It stays for later runs until the `with` block ends, so that a search and the
    runs after it start their processes once.

    Args:
        devices: the value of `CUDA_VISIBLE_DEVICES` for each process; None keeps the value of this process.
    """

    def __init__(self, devices: Sequence[str | None]) -> None:
        self.devices = devices
        self._workers: list[_Worker] = []

    @classmethod
    def of(cls, use_cpu: bool, per_gpu: int) -> RunPool:
        """Return a pool for all GPUs, with `per_gpu` runs at a time on each."""
        gpus = 0 if use_cpu else torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(gpus)]
        return cls([names[number % gpus] for number in range(gpus * per_gpu)])

    def __enter__(self) -> RunPool:
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes: when their runs are done, or at once after an error."""
        if error[0] is None:
            for worker in self._workers:
                worker.connection.close()  # this ends the process
            for worker in self._workers:
                worker.process.join(10)
        # SIGKILL, because a training saves a checkpoint on SIGTERM. It damages no result: each is written atomically.
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def do_all(self, planned: Sequence[SizedRun], progress: EvaluationProgress) -> None:
        """Do runs; each run writes its result.

        Args:
            planned: runs with their sizes. It is faster if runs of the same task, and within it of the same model,
                follow each other.
            progress: logs each run.

        Raises:
            PotstillError: a run failed whose `may_fail` is False, or the runs were interrupted. The results of finished
                runs are written.
        """
        one_gpu = len(set(self.devices)) <= 1
        if not self._workers and one_gpu and min(len(planned), len(self.devices)) <= 1:
            do_here(planned, progress)
            return
        # The longest runs come first, so that no process has a long run left at the end. All seeds of a model and task
        # have the same size, so they stay together.
        waiting = iter(sorted(planned, key=lambda sized: -sized[1]))
        try:
            busy: dict[object, _Worker] = {}
            for number, first in zip(range(len(self.devices)), waiting, strict=False):
                worker = self._worker(number, first, min(len(self.devices), len(planned)))
                busy[worker.connection] = worker
            while busy:
                for ready in wait([worker.connection for worker in busy.values()]):
                    worker = busy[ready]
                    _receive(worker, progress)
                    following = next(waiting, None)
                    if following is None:
                        del busy[ready]
                    else:
                        worker.current = following
                        _send(worker.connection, following[0])
        except KeyboardInterrupt as error:
            raise interrupted() from error

    def _worker(self, number: int, first: SizedRun, processes: int) -> _Worker:
        """Give a run to a waiting process, or to a new one that shares the CPU with all but one of `processes`."""
        if number == len(self._workers):
            process, connection = _start(self.devices[number], processes)
            self._workers.append(_Worker(process, connection, first))
        worker = self._workers[number]
        worker.current = first
        _send(worker.connection, first[0])
        return worker


def _receive(worker: _Worker, progress: EvaluationProgress) -> None:
    """Log the run that a process has done.

    Raises:
        PotstillError: the process died, or its run failed and may not.
    """
    run, size = worker.current
    try:
        outcome, is_bug = worker.connection.recv()
    except (EOFError, OSError) as error:
        raise _died(worker) from error
    if is_bug:
        raise RuntimeError(f"{run}:\n{outcome}")
    if isinstance(outcome, str) and not run.may_fail:
        raise failed(run, outcome)
    progress.log(run, size, outcome)


def _start(device: str | None, processes: int) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    own_end, worker_end = context.Pipe()
    threads = max(1, torch.get_num_threads() // processes)
    arguments = (f"{__name__}:{work.__name__}", worker_end, threads, logging.is_progress_bar_enabled())
    process = context.Process(target=call, args=arguments, daemon=True)
    with _visible(device), _sigint_blocked():
        process.start()
    worker_end.close()  # so that the connection ends when the process ends
    return process, own_end


def _send(connection: Connection, run: PlannedRun) -> None:
    with contextlib.suppress(OSError):  # if the process is dead, the code that waits for its answer notices it
        connection.send(run)


@contextlib.contextmanager
def _visible(device: str | None) -> Iterator[None]:
    """Set the GPUs of a new process. CUDA reads the variable only when it starts, so this process keeps its GPUs."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if device is not None:
        os.environ[name] = device
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif device is not None:
            del os.environ[name]


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Make a new process ignore Ctrl-C, which a terminal sends to all processes: this process ends the others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(connection: Connection, threads: int, progress_bars: bool) -> None:
    """Do each run that is received, and send (result, False), (error message, False) or (traceback of a bug, True)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if not progress_bars:
        logging.disable_progress_bar()
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        try:
            connection.send((do(run), False))
        except PotstillError as error:
            if error.exit_status > 128:  # SIGTERM was sent to this process, or to all
                sys.exit(error.exit_status)
            connection.send((str(error), False))
        except Exception:  # a bug, of any type: the main process reports it
            connection.send((traceback.format_exc(), True))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _died(worker: _Worker) -> PotstillError:
    worker.process.join(5)
    status = worker.process.exitcode
    how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
    return PotstillError(
        f"{worker.current[0]}: the process of this run {how}, perhaps for lack of memory; the finished runs are kept: "
        "give the same command again, perhaps with --runs_per_gpu 1."
    )


def failed(run: PlannedRun | str, message: str) -> PotstillError:
    """Return the error for a run without a result."""
    return PotstillError(f"{run}: {message.rstrip('.')} (the finished runs are kept).")


def interrupted(status: int = 128 + signal.SIGINT) -> PotstillError:
    """Return the error for runs that a signal ended; `status` is the exit status."""
    error = PotstillError("Interrupted; the finished runs are kept: give the same command again to continue.")
    error.exit_status = status
    return error
