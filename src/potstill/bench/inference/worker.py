"""A process that runs one model in one form. It receives calls over a connection: `python -m … FD`.

Each form has its own process, so that its memory can be measured separately, and so that the threads and allocators of
different runtimes do not slow each other.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from potstill.bench.inference.memory import peak, reset_peak
from potstill.bench.inference.models import Form
from potstill.bench.inference.requests import Requests
from potstill.bench.inference.runners import Arrays, Runner, open_runner
from potstill.bench.inference.turns import SECONDS_TO_SETTLE
from potstill.errors import PotstillError, first_line

TOKENISED_TO_WARM_UP = 20


class Worker:
    """The methods of a process, in the order of their calls.

    Requests are named by their numbers. All requests are read before the first one is run.
    """

    def __init__(self) -> None:
        self._form: Form
        self._runner: Runner
        self._before = 0
        self._requests: Requests
        self._rows: list[Arrays] = []
        self._singles: list[Any] = []
        self._batches: list[Any] = []

    def open(self, form: Form, threads: int) -> int | None:
        """Load a model, and return the largest number of tokens that it can read; None if there is no limit.

        Raises:
            PotstillError: the model cannot be loaded.
        """
        self._form = form
        _import_libraries(form, threads)
        self._before = reset_peak()
        self._runner = open_runner(form, threads)
        return self._runner.longest

    def read(self, requests: Requests, max_length: int | None) -> list[int]:
        """Make the model's inputs of the requests, and return their lengths, in the model's tokens."""
        self._requests = requests
        if requests.texts is not None:
            self._rows = [self._runner.encode(text, max_length) for text in requests.texts]
        else:
            self._rows = [self._runner.random(length, seed) for seed, length in enumerate(requests.lengths or ())]
        self._singles = [self._runner.prepare([row]) for row in self._rows]
        return [self._length(number) for number in range(len(self._rows))]

    def tokenise(self, max_length: int | None) -> list[float]:
        """Return the seconds to tokenise each text; an empty list if there are no texts."""
        seconds = []
        texts = self._requests.texts or ()
        for text in (*texts[:TOKENISED_TO_WARM_UP], *texts):
            started = time.perf_counter()
            self._runner.encode(text, max_length)
            seconds.append(time.perf_counter() - started)
        return seconds[len(texts[:TOKENISED_TO_WARM_UP]) :]

    def warm_up(self, count: int) -> None:
        """Run the shortest request, the longest and `count` more. Then exclude live objects from garbage collection.

        Raises:
            PotstillError: the model cannot be run.
        """
        order = sorted(range(len(self._rows)), key=self._length)
        try:
            for number in (order[0], order[-1], *(at % len(order) for at in range(count))):
                self._runner.run(self._singles[number])
        except Exception as error:  # of the many types of runtimes and compilers
            hint = "; --compiled false leaves this form out" if self._form.runner == "compiled" else ""
            raise PotstillError(f"it cannot be run as {self._form.title} ({first_line(error)}){hint}") from error
        gc.collect()
        gc.freeze()  # otherwise the collector would go through all libraries, sometimes during a request

    def run(self, numbers: Sequence[int]) -> list[float]:
        """Run requests one at a time and return the seconds of each.

        Some requests run first and do not count, so that threads are awake and caches hold this model, not the model of
        the previous turn.
        """
        self.run_for(SECONDS_TO_SETTLE)
        seconds = []
        for number in numbers:
            batch = self._singles[number]
            started = time.perf_counter()
            self._runner.run(batch)
            seconds.append(time.perf_counter() - started)
        return seconds

    def run_for(self, seconds: float) -> int:
        """Run requests one at a time, from the first on, for some seconds. Return how many ran, at least one."""
        started, count = time.perf_counter(), 0
        while True:
            self._runner.run(self._singles[count % len(self._singles)])
            count += 1
            if time.perf_counter() - started >= seconds:
                return count

    def batch(self, batches: Sequence[Sequence[int]]) -> float | str:
        """Make batches of requests and warm up. Return the share of padding, or the reason why they cannot be run."""
        self._batches = [self._runner.prepare([self._rows[number] for number in batch]) for batch in batches]
        try:
            for batch in self._batches[:2]:
                self._runner.run(batch)
        except Exception as error:  # of many types: a runtime may refuse more rows than its model takes
            return first_line(error)
        lengths = [[self._length(number) for number in batch] for batch in batches]
        return 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)

    def run_batch(self, number: int) -> float:
        """Run a batch and return its seconds. Single requests run first, for the same reason as in `run`."""
        self.run_for(SECONDS_TO_SETTLE)
        batch = self._batches[number]
        started = time.perf_counter()
        self._runner.run(batch)
        return time.perf_counter() - started

    def memory(self) -> tuple[int, int]:
        """Return the largest resident size since the model was loaded, and the size before that, in bytes."""
        return peak(), self._before

    def _length(self, number: int) -> int:
        return next(iter(self._rows[number].values())).shape[1]


def _import_libraries(form: Form, threads: int) -> None:
    """Import the libraries, so that their memory does not count as the model's."""
    import torch

    import potstill.corpus
    import potstill.export.runtime
    import potstill.finetuning.models

    torch.set_num_threads(threads)
    if form.runner == "exported":
        potstill.export.runtime.ExportedFolder.read(Path(form.path).expanduser()).import_runtime()


def main(descriptor: int) -> None:
    """Run the calls from a connection and send back their results, until the connection ends."""
    connection: Connection[Any, Any] = Connection(descriptor)
    worker = Worker()
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", getattr(worker, method)(*arguments)))
        except PotstillError as error:
            connection.send(("refused", str(error)))
        except Exception:  # of any type: the other process raises it with its traceback
            connection.send(("broken", traceback.format_exc()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
