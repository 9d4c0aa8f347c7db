"""The processes that run the forms: starts them, sends them calls, and ends them."""

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
    "CUDA_VISIBLE_DEVICES": "",  # the bench measures the CPU
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # or the compiler leaves processes of its own behind
    "TRANSFORMERS_VERBOSITY": "error",
}


class Process:
    """A process that runs a form. Its methods are those of `potstill.bench.inference.worker.Worker`.

    Args:
        form: for messages.
        threads: number of threads that it may use.
    """

    def __init__(self, form: Form, threads: int) -> None:
        self.form = form
        self._method = ""
        self._connection, worker_end = multiprocessing.Pipe()
        self._log = TemporaryFile()  # noqa: SIM115 (closed by close())
        environment = os.environ | dict.fromkeys(THREADS, str(threads)) | SETTINGS
        with worker_end:
            self._process = subprocess.Popen(
                # -P: without the working directory on the path, because an onnx.py may lie there.
                [sys.executable, "-P", "-m", "potstill.bench.inference.worker", str(worker_end.fileno())],
                pass_fds=[worker_end.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                process_group=0,  # a terminal's Ctrl-C goes only to the process that waits for the others
            )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def send(self, method: str, *arguments: Any) -> None:
        """Send a call to the worker, and do not wait for it."""
        self._method = method
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Any:
        """Wait for the result of the call and return it.

        Raises:
            PotstillError: bad input, or the process died.
            RuntimeError: a bug. Its traceback is in the message.
        """
        try:
            outcome, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if outcome == "refused":
            raise PotstillError(f"--models {self.form.name}: {answer.rstrip('.')}.")
        if outcome == "broken":
            raise RuntimeError(f"{self.form}, {self._method}:\n{answer}")
        return answer

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker and return its result; see `receive`."""
        self.send(method, *arguments)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
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
        detail = f" ({last[0][:200]})" if last else ""
        return PotstillError(
            f"{self.form}: its process {how} at '{self._method}'{detail}, perhaps for lack of memory "
            "or because its files are damaged: leave this form out, or write its files again."
        )


@contextmanager
def processes(forms: Sequence[Form], threads: int) -> Iterator[list[Process]]:
    """Start a process for each form. All processes end with the body."""
    started: list[Process] = []
    try:
        for form in forms:
            started.append(Process(form, threads))
        yield started
    finally:
        for process in started:
            process.close()


def all_at_once(workers: Sequence[Process], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run one call in each process at the same time, and return the results. Do not time such calls.

    Args:
        workers: the processes.
        calls: for each process, the arguments of `Process.send`.
    """
    for worker, call in zip(workers, calls, strict=True):
        worker.send(*call)
    return [worker.receive() for worker in workers]
