"""Doing runs: one after another here, or several at a time in processes that share the GPUs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
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
from potstill.training.progress import duration

Sized = tuple[PlannedRun, float]
"""A run, and about how long it takes in a unit of its own."""


class EvaluationProgress:
    """Prints a line for each run that is done: how many there are, the score, the time left.

    Args:
        size: of all runs to come, in the unit of `Sized`.
        count: of all runs.
        done: runs that an earlier session has done.
    """

    def __init__(self, size: float, count: int, done: int) -> None:
        self.to_do, self.count, self.done = size, count, done
        self.behind = 0.0
        self.started = time.monotonic()

    def tell(self, work: PlannedRun, size: float, outcome: RunResult | str) -> None:
        """Count a run as done, and say what came of it: a result, or why there is none."""
        self.done += 1
        self.behind += size
        elapsed = time.monotonic() - self.started
        left = elapsed / max(self.behind, 1e-9) * max(self.to_do - self.behind, 0.0)
        if isinstance(outcome, RunResult):
            said = f"score {outcome.score:.1f} · {sum(outcome.seconds.values()):.0f} s"
        else:
            said = f"no score: {outcome}"
        print(
            f"[{self.done}/{self.count}] {work} · {said} · {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )


def do_all(planned: Sequence[Sized], per_gpu: int, progress: EvaluationProgress) -> None:
    """Do runs, each of which writes its result.

    Args:
        planned: runs, with their sizes; those that share a task, and then a model, best stand together.
        per_gpu: how many share a GPU at a time.
        progress: is told of each.

    Raises:
        PotstillError: a run failed that may not, or all was interrupted; those done before are written.
    """
    gpus = torch.cuda.device_count() if planned and not planned[0][0].options["use_cpu"] else 0
    if gpus <= 1 and min(len(planned), gpus * per_gpu) <= 1:
        do_here(planned, progress)
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    do_in_processes(planned, [names[number % gpus] for number in range(gpus * per_gpu)], progress)


def do_here(planned: Sequence[Sized], progress: EvaluationProgress) -> None:
    """Do runs one after another in this process; see `do_all`."""
    for work, size in planned:
        outcome: RunResult | str
        try:
            outcome = do(work)
        except PotstillError as error:
            if error.exit_status > 128:
                raise _interrupted(error.exit_status) from error
            if not work.may_fail:
                raise _failed(work, str(error)) from error
            outcome = str(error)
        except KeyboardInterrupt as error:
            raise _interrupted(128 + signal.SIGINT) from error
        progress.tell(work, size, outcome)


@dataclass
class _Worker:
    """A process, this end of its line, and what it is doing."""

    process: SpawnProcess
    line: Connection
    doing: Sized


def do_in_processes(planned: Sequence[Sized], devices: Sequence[str | None], progress: EvaluationProgress) -> None:
    """Do runs in as many processes as there are devices; see `do_all`.

    Args:
        planned: as in `do_all`.
        devices: for each process, what `CUDA_VISIBLE_DEVICES` is there; None leaves it as it is here.
        progress: is told of each.
    """
    # The longest first, so that no process is left with one at the end. Seeds are of one size, so they stay together.
    waiting = iter(sorted(planned, key=lambda sized: -sized[1]))
    workers: list[_Worker] = []
    try:
        for device, first in zip(devices, waiting, strict=False):
            process, line = _start(device, min(len(devices), len(planned)))
            workers.append(_Worker(process, line, first))
            _send(line, first[0])
        busy: dict[object, _Worker] = {worker.line: worker for worker in workers}
        while busy:
            for ready in wait([worker.line for worker in busy.values()]):
                worker = busy[ready]
                work, size = worker.doing
                try:
                    outcome, broken = worker.line.recv()
                except (EOFError, OSError) as error:
                    raise _died(worker) from error
                if broken:
                    raise RuntimeError(f"{work}:\n{outcome}")
                if isinstance(outcome, str) and not work.may_fail:
                    raise _failed(work, outcome)
                progress.tell(work, size, outcome)
                following = next(waiting, None)
                if following is None:
                    worker.line.close()  # and it ends
                    del busy[ready]
                else:
                    worker.doing = following
                    _send(worker.line, following[0])
        for worker in workers:
            worker.process.join(10)
    except KeyboardInterrupt as error:
        raise _interrupted(128 + signal.SIGINT) from error
    finally:
        # Not by SIGTERM, on which a training first saves a checkpoint. Results are written whole, or not at all.
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.line.close()


def _start(device: str | None, among: int) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    here, there = context.Pipe()
    threads = max(1, torch.get_num_threads() // among)
    process = context.Process(target=_work, args=(there, threads, logging.is_progress_bar_enabled()), daemon=True)
    with _visible(device), _sigint_blocked():
        process.start()
    there.close()  # so that the line ends when the process does
    return process, here


def _send(line: Connection, work: PlannedRun) -> None:
    with contextlib.suppress(OSError):  # the process is dead already, which is noticed where its answer is awaited
        line.send(work)


@contextlib.contextmanager
def _visible(device: str | None) -> Iterator[None]:
    """Set what a process that is started sees; it is read when CUDA starts, so this one's own is not touched."""
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
    """Have a process that is started never see Ctrl-C, which a terminal sends to all: this one ends the others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(line: Connection, threads: int, progress_bars: bool) -> None:
    """Do the runs that come, and answer with each one's result, or why there is none, and whether that is a bug."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if not progress_bars:
        logging.disable_progress_bar()
    while True:
        try:
            work = line.recv()
        except EOFError:
            return
        try:
            line.send((do(work), False))
        except PotstillError as error:
            if error.exit_status > 128:  # SIGTERM came for this process alone, or all are ending
                sys.exit(error.exit_status)
            line.send((str(error), False))
        except Exception:  # of any type: it is told where it can be seen
            line.send((traceback.format_exc(), True))


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
        f"{worker.doing[0]}: the process of this run {how} (was memory short?); the finished runs are kept: give the "
        "same command again, perhaps with --runs_per_gpu 1."
    )


def _failed(work: PlannedRun, message: str) -> PotstillError:
    return PotstillError(f"{work}: {message.rstrip('.')} (the finished runs are kept).")


def _interrupted(status: int) -> PotstillError:
    error = PotstillError("Interrupted; the finished runs are kept: give the same command again to go on from there.")
    error.exit_status = status
    return error
