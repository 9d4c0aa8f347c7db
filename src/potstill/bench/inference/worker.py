"""A process that runs one model in one form, and does what it is told over a line: `python -m … FD`.

Each form has a process of its own, so that its memory can be told from that of others, and so that no runtime's threads
or allocator are in another one's way.
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

from potstill.bench.inference.memory import forget_peak, peak
from potstill.bench.inference.models import Form
from potstill.bench.inference.requests import Requests
from potstill.bench.inference.runners import Arrays, Runner, open_runner
from potstill.bench.inference.turns import SECONDS_TO_SETTLE
from potstill.errors import PotstillError, first_line

TOKENISED_TO_WARM_UP = 20


class Worker:
    """What a process is told to do, in this order.

    A request is told by its number; all are read before the first is run.
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
        """Load a model, and return how many tokens it reads at most; None if any number.

        Raises:
            PotstillError: it cannot be loaded.
        """
        self._form = form
        _import_what_it_needs(form, threads)
        self._before = forget_peak()
        self._runner = open_runner(form, threads)
        return self._runner.longest

    def read(self, requests: Requests, max_length: int | None) -> list[int]:
        """Turn requests into what the model reads, and return their lengths, in its tokens."""
        self._requests = requests
        if requests.texts is not None:
            self._rows = [self._runner.encode(text, max_length) for text in requests.texts]
        else:
            self._rows = [self._runner.random(length, seed) for seed, length in enumerate(requests.lengths or ())]
        self._singles = [self._runner.prepare([row]) for row in self._rows]
        return [self._length(number) for number in range(len(self._rows))]

    def tokenise(self, max_length: int | None) -> list[float]:
        """Return the seconds that turning each text into what the model reads takes; none where there are no texts."""
        seconds = []
        texts = self._requests.texts or ()
        for text in (*texts[:TOKENISED_TO_WARM_UP], *texts):
            started = time.perf_counter()
            self._runner.encode(text, max_length)
            seconds.append(time.perf_counter() - started)
        return seconds[len(texts[:TOKENISED_TO_WARM_UP]) :]

    def warm_up(self, count: int) -> None:
        """Run the shortest request, the longest and some more, and take what is there for what stays.

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
        gc.freeze()  # or the collector would go through all of the libraries, at times in the middle of a request

    def run(self, numbers: Sequence[int]) -> list[float]:
        """Run requests one at a time and return the seconds of each.

        Others are run before, uncounted: threads and caches are then this model's, not those of the one whose turn was
        before.
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
        """Run requests one at a time, from the first on, for so long, and return how many there were: at least one."""
        started, count = time.perf_counter(), 0
        while True:
            self._runner.run(self._singles[count % len(self._singles)])
            count += 1
            if time.perf_counter() - started >= seconds:
                return count

    def batch(self, batches: Sequence[Sequence[int]]) -> float | str:
        """Make batches of requests and warm up for them; return what share of them is padding, or why it cannot run."""
        self._batches = [self._runner.prepare([self._rows[number] for number in batch]) for batch in batches]
        try:
            for batch in self._batches[:2]:
                self._runner.run(batch)
        except Exception as error:  # whatever a runtime says to more rows than its model takes
            return first_line(error)
        lengths = [[self._length(number) for number in batch] for batch in batches]
        return 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)

    def run_batch(self, number: int) -> float:
        """Run a batch and return its seconds; single requests are run before, for the same reason as in `run`."""
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


def _import_what_it_needs(form: Form, threads: int) -> None:
    """Import the libraries, whose memory is not the model's."""
    import torch

    import potstill.corpus
    import potstill.export.runtime
    import potstill.finetuning.models

    torch.set_num_threads(threads)
    if form.runner == "exported":
        potstill.export.runtime.ExportedFolder.read(Path(form.path).expanduser()).import_runtime()


def main(descriptor: int) -> None:
    """Do what comes over a line and answer with what came of it, until the line ends."""
    line: Connection[Any, Any] = Connection(descriptor)
    worker = Worker()
    while True:
        try:
            method, arguments = line.recv()
        except EOFError:
            return
        try:
            line.send(("done", getattr(worker, method)(*arguments)))
        except PotstillError as error:
            line.send(("refused", str(error)))
        except Exception:  # of any type: it is told where it can be seen
            line.send(("broken", traceback.format_exc()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
