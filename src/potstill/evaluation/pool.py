"""Doing runs: one after another here, or several at a time in processes that share the GPUs."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from potstill.errors import PotstillError
from potstill.evaluation.results import RunResult
from potstill.evaluation.run import Work, do
from potstill.training.progress import duration


class Progress:
    """Prints a line for each run that is done: how many there are, the score, the time left.

    Args:
        sizes: of all runs to come, in any unit that a run's time grows with.
        done: runs that an earlier session has done.
    """

    def __init__(self, sizes: float, count: int, done: int) -> None:
        self.to_do, self.count, self.done = sizes, count, done
        self.behind = 0.0
        self.started = time.monotonic()

    def tell(self, result: RunResult, what: str, size: float) -> None:
        """Count a run as done, and say what came of it."""
        self.done += 1
        self.behind += size
        elapsed = time.monotonic() - self.started
        left = elapsed / max(self.behind, 1e-9) * max(self.to_do - self.behind, 0.0)
        print(
            f"[{self.done}/{self.count}] {what} · score {result.score:.1f} · {sum(result.seconds.values()):.0f} s · "
            f"{duration(left)} left",
            file=sys.stderr,
            flush=True,
        )


def do_all(works: Sequence[tuple[Work, float]], per_gpu: int, progress: Progress) -> list[RunResult]:
    """Do runs, and return their results in the order they were done in.

    Args:
        works: runs, with their sizes; those that share a model and a task best stand together.
        per_gpu: how many share a GPU at a time.
        progress: is told of each.

    Raises:
        PotstillError: a run failed, or was interrupted; those done before are written.
    """
    gpus = torch.cuda.device_count() if works and not works[0][0].options["use_cpu"] else 0
    workers = min(len(works), max(1, gpus * per_gpu))
    results = []
    if workers <= 1 and gpus <= 1:  # a run sees one GPU
        for work, size in works:
            try:
                results.append(do(work))
            except PotstillError as error:
                raise _failed(work, str(error), error.exit_status) from error
            progress.tell(results[-1], str(work), size)
        return results
    return _in_processes(works, workers, gpus, progress)


def _in_processes(works: Sequence[tuple[Work, float]], workers: int, gpus: int, progress: Progress) -> list[RunResult]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    tasks, answers = context.SimpleQueue(), context.Queue()
    # The longest first, so that no worker is left with one at the end; seeds of one task stay together by that too.
    order = sorted(range(len(works)), key=lambda number: -works[number][1])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    processes = []
    results = []
    try:
        for number in range(workers):
            # It is read when CUDA starts, which a parent's start does not touch.
            os.environ["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
            processes.append(context.Process(target=_work, args=(tasks, answers), daemon=True))
            processes[-1].start()
        for number in order:
            tasks.put((number, works[number][0]))
        for _ in range(workers):
            tasks.put(None)
        for _ in order:
            number, result, message = _next(answers, processes)
            work, size = works[number]
            if result is None:
                raise _failed(work, message, 1)
            results.append(result)
            progress.tell(result, str(work), size)
    finally:
        if visible is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
    return results


def _next(answers: Any, processes: list[Any]) -> tuple[int, RunResult | None, str]:
    """Wait for an answer, but not of a process that was killed."""
    while True:
        try:
            return answers.get(timeout=2)
        except queue.Empty:
            gone = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if gone:
                raise PotstillError(
                    f"A process of the evaluation ended with status {gone[0]} (was it out of memory?): the finished "
                    "runs are kept; give the same command again, perhaps with --runs_per_gpu 1."
                ) from None


def _work(tasks: Any, answers: Any) -> None:
    """Do the runs that come, and answer with each one's result, or why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while (item := tasks.get()) is not None:
        number, work = item
        try:
            answers.put((number, do(work), ""))
        except PotstillError as error:
            answers.put((number, None, str(error)))
        except Exception as error:  # of any type: the parent cannot know of it otherwise
            answers.put((number, None, f"{type(error).__name__}: {error}"))


def _failed(work: Work, message: str, status: int) -> PotstillError:
    if status > 128:
        message = "Interrupted; the finished runs are kept: give the same command again to go on from there."
        error = PotstillError(message)
    else:
        error = PotstillError(f"{work}: {message} (The finished runs are kept.)")
    error.exit_status = status
    return error
