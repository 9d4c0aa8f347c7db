"""The processes in which forms are run: started, told what to do one at a time, and ended."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any

from potstill.bench.inference.models import Form
from potstill.errors import PotstillError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",  # what is measured is the CPU
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # or the compiler leaves processes of its own behind
    "TRANSFORMERS_VERBOSITY": "error",
}


class Process:
    """A process that runs a form; see `potstill.bench.inference.worker.Worker` for what it can be told.

    Args:
        form: for messages.
        threads: that it may use.
    """

    def __init__(self, form: Form, threads: int) -> None:
        self.form = form
        self._told = ""
        self._line, there = multiprocessing.Pipe()
        self._log = TemporaryFile()  # noqa: SIM115 (closed by close())
        environment = os.environ | dict.fromkeys(THREADS, str(threads)) | SETTINGS
        with there:
            self._process = subprocess.Popen(
                # Without the working directory on the path, where an onnx.py may lie.
                [sys.executable, "-P", "-m", "potstill.bench.inference.worker", str(there.fileno())],
                pass_fds=[there.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                process_group=0,  # a terminal's Ctrl-C is for the one that waits for all of them
            )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def tell(self, method: str, *arguments: Any) -> None:
        """Have the worker do something, and do not wait for it."""
        self._told = method
        try:
            self._line.send((method, arguments))
        except OSError as error:
            raise self._died() from error

    def hear(self) -> Any:
        """Wait for what came of it and return it.

        Raises:
            PotstillError: bad input, or the process died.
            RuntimeError: a bug; its traceback is in the message.
        """
        try:
            outcome, answer = self._line.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if outcome == "refused":
            raise PotstillError(f"--models {self.form.name}: {answer.rstrip('.')}.")
        if outcome == "broken":
            raise RuntimeError(f"{self.form}, {self._told}:\n{answer}")
        return answer

    def call(self, method: str, *arguments: Any) -> Any:
        """Have the worker do something and wait for it; see `hear`."""
        self.tell(method, *arguments)
        return self.hear()

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _died(self) -> PotstillError:
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        said = f" ({last[0][:200]})" if last else ""
        return PotstillError(
            f"{self.form}: its process {how} at '{self._told}'{said}: memory was short, or its files are damaged."
        )


@contextmanager
def processes(forms: Sequence[Form], threads: int) -> Iterator[list[Process]]:
    """Start a process for each form; they end with the body."""
    started: list[Process] = []
    try:
        for form in forms:
            started.append(Process(form, threads))
        yield started
    finally:
        for process in started:
            process.close()


def all_at_once(workers: Sequence[Process], told: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Have each do something at the same time, which nothing that is timed may be, and return what came of each.

    Args:
        workers: the processes.
        told: for each, what `Process.tell` takes.
    """
    for worker, words in zip(workers, told, strict=True):
        worker.tell(*words)
    return [worker.hear() for worker in workers]
