"""Turn documents into token ids in several processes, in the order of the documents."""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.corpus import worker
from potstill.corpus.tokenizer import TokenizerSpec
from potstill.errors import PotstillError, advice

BATCHES_PER_WORKER = 2
"""One batch is tokenised while one waits, so that no worker is idle while the reader reads."""

BYTES_PER_TEXT_BYTE = 96
"""Memory that a worker needs for one byte of text: `tokenizers` keeps strings, offsets and alignments of its input
(measured: up to 86 bytes, in one long document)."""


class Batch(NamedTuple):
    """Consecutive documents: the number of the first one, and the texts in UTF-8."""

    first: int
    documents: list[bytes]


@dataclass(frozen=True)
class Tokens:
    """The result of one batch: for each split its ids (1-D, the corpus's dtype) and its number of documents."""

    train: NDArray[Any]
    validation: NDArray[Any]
    train_documents: int
    validation_documents: int
    read_documents: int
    read_bytes: int


def batched(documents: Iterable[bytes], batch_bytes: int, first: int = 0) -> Iterator[Batch]:
    """Group consecutive documents into batches of at least `batch_bytes` bytes; only the last one may be smaller.

    `first` is the number of the first document.
    """
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= batch_bytes:
            yield Batch(first, batch)
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield Batch(first, batch)


def batch_bytes_for(memory_limit_mb: int, num_proc: int) -> int:
    """Return the size of a batch, in bytes of text, that keeps the memory of all processes within the limit.

    The size is at least 16 KiB, because smaller batches cost more in communication than they save. It is at most
    256 KiB, because larger batches are not faster. A long document may still exceed the limit.
    """
    in_flight = num_proc * (BYTES_PER_TEXT_BYTE + BATCHES_PER_WORKER)
    return min(max(memory_limit_mb * 2**20 // in_flight, 2**14), 2**18)


def tokenise(
    batches: Iterable[Batch],
    spec: TokenizerSpec,
    seed: int,
    validation_fraction: float,
    num_proc: int,
    sentences: bool = False,
) -> Generator[Tokens, None, None]:
    """Tokenise batches on `num_proc` processes and yield the results in the order of the batches.

    With `sentences` each document is split into pieces of one to four sentences first.

    The workers end with the generator: close it (`contextlib.closing`) to end them early.

    Raises:
        PotstillError: the tokenizer failed on a document, or a worker died.
    """
    settings = {
        "tokenizer_json": spec.json,
        "separator": spec.separator,
        "special_ids": spec.special_ids,
        "unknown": spec.unknown,
        "id_bytes": spec.dtype.itemsize,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "sentences": sentences,
    }
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def exchange(batch: Batch) -> Tokens:
        process = idle.get()
        try:
            train, validation, train_documents, validation_documents = process.exchange(batch)
        finally:
            # A dead worker goes back too, so that the next batch fails at once instead of waiting for ever.
            idle.put(process)
        return Tokens(
            train=np.frombuffer(train, spec.dtype),
            validation=np.frombuffer(validation, spec.dtype),
            train_documents=train_documents,
            validation_documents=validation_documents,
            read_documents=sum(map(bool, batch.documents)),  # an empty one was left out by the reader
            read_bytes=sum(map(len, batch.documents)),
        )

    # The threads only wait for pipes. With them, a slow worker does not block the reader or deadlock with it.
    threads = ThreadPoolExecutor(num_proc, thread_name_prefix="tokenise")
    pending: deque[Future[Tokens]] = deque()
    try:
        for batch in batches:
            if len(workers) < num_proc:  # there are never more workers than batches
                workers.append(_Worker(settings))
                idle.put(workers[-1])
            pending.append(threads.submit(exchange, batch))
            if len(pending) >= BATCHES_PER_WORKER * num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for process in workers:
            process.end()
        threads.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """One process that runs `worker.py`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Each process has one thread: more threads would compete with the other processes for the same cores.
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
        try:
            # The errors that Rust prints do not go to the terminal: the error message quotes them.
            self.stderr: IO[bytes] = TemporaryFile()  # noqa: SIM115 (closed by end())
            self.process = subprocess.Popen(
                # -P: Python must not import from the folder of the script.
                [sys.executable, "-P", str(Path(worker.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=environment,
                # The parent handles a Ctrl-C in the terminal and ends its workers itself.
                process_group=0,
            )
        except OSError as error:
            raise PotstillError(
                f"A tokenising process cannot be started ({error.strerror}): lower --num_proc, or {advice(error)}."
            ) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests: IO[bytes] = self.process.stdin
        self.answers: IO[bytes] = self.process.stdout
        # The settings are sent with the first batch: writing them blocks until the worker reads, and a thread can wait.
        self.unsent_settings: dict[str, Any] | None = settings

    def exchange(self, batch: Batch) -> tuple[bytes, bytes, int, int]:
        try:
            if self.unsent_settings is not None:
                pickle.dump(self.unsent_settings, self.requests)
                self.unsent_settings = None
            pickle.dump(tuple(batch), self.requests)
            self.requests.flush()
            answer = pickle.load(self.answers)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise self._died(batch) from error
        if isinstance(answer, str):
            raise PotstillError(f"The tokenizer failed {answer.rstrip('.')}: correct the document or the tokenizer.")
        return answer

    def _died(self, batch: Batch) -> PotstillError:
        status = self.process.wait()
        last = batch.first + len(batch.documents)
        longest = max(map(len, batch.documents))
        where = f"at documents {batch.first + 1} to {last} of the text, the longest of which has {longest:,} bytes"
        self.stderr.seek(0)
        messages = self.stderr.read(2**16).decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if status == -signal.SIGKILL or any("memory allocation" in line for line in messages):
            return PotstillError(
                f"A tokenising process {how}, most likely for lack of memory, {where}: lower --num_proc or "
                "--memory_limit_mb, or split long documents into shorter ones."
            )
        return PotstillError(f"A tokenising process {how} {where}{f' ({messages[-1]})' if messages else ''}.")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.requests, self.answers, self.stderr):
            with suppress(OSError):  # closing flushes the rest, which nobody reads any more
                stream.close()
