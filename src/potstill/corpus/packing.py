"""Write a stream of token ids as blocks of one length to an Arrow file."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from numpy.typing import NDArray

from potstill.corpus.tokenizer import TokenizerSpec

TOKENS_PER_RECORD_BATCH = 2**20
"""A fixed number, so that the bytes of the file depend only on the stream. It is small compared with memory limits."""


class BlockWriter:
    """Write one split: each block is `[CLS] content [SEP]`, and the contents together are the stream.

    The file is an Arrow IPC stream that `datasets.Dataset.from_file` can map into memory. Its column `input_ids` is a
    fixed-size list of the smallest unsigned integers that hold the vocabulary. Tokens at the end that do not fill a
    block are dropped.

    Attributes:
        tokens: length of the stream so far, with separators but without the [CLS] and [SEP] around each block.
        blocks: blocks written.
        counts: (vocab_size,) int64, occurrences of each id in the contents of the blocks written.
    """

    def __init__(self, path: Path, spec: TokenizerSpec, block_size: int) -> None:
        self.spec = spec
        self.block_size = block_size
        self.content_size = content_size(spec, block_size)
        self.tokens = 0
        self.blocks = 0
        self.counts = np.zeros(spec.vocab_size, dtype=np.int64)
        self._waiting: list[NDArray[Any]] = []
        self._waiting_tokens = 0
        self._rows = max(1, TOKENS_PER_RECORD_BATCH // block_size)
        self._schema = Features({"input_ids": List(Value(spec.dtype.name), length=block_size)}).arrow_schema
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)

    def add(self, ids: NDArray[Any]) -> None:
        """Append ids (1-D, of the spec's dtype) to the stream, and write full record batches to the file."""
        self.tokens += len(ids)
        self._waiting.append(ids)
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= self._rows * self.content_size:
            stream = np.concatenate(self._waiting)
            size = self._rows * self.content_size
            full = len(stream) // size * size
            for start in range(0, full, size):
                self._write(stream[start : start + size])
            self._waiting = [stream[full:].copy()]
            self._waiting_tokens = len(stream) - full

    def finish(self) -> None:
        """Write the blocks that are still waiting and end the file."""
        if self._waiting_tokens >= self.content_size:
            stream = np.concatenate(self._waiting)
            self._write(stream[: len(stream) // self.content_size * self.content_size])
        self.close()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
        self._file.close()

    @property
    def dropped_tokens(self) -> int:
        """Number of the stream's tokens that are in no block; final after `finish`."""
        return self.tokens - self.blocks * self.content_size

    def _write(self, contents: NDArray[Any]) -> None:
        rows = contents.reshape(-1, self.content_size)
        blocks = np.empty((len(rows), self.block_size), dtype=self.spec.dtype)
        start = 0
        if self.spec.prefix is not None:
            blocks[:, 0] = self.spec.prefix
            start = 1
        blocks[:, start : start + self.content_size] = rows
        if self.spec.suffix is not None:
            blocks[:, -1] = self.spec.suffix
        self.write_blocks(blocks)
        self.counts += np.bincount(contents, minlength=self.spec.vocab_size)

    def write_blocks(self, blocks: NDArray[Any]) -> None:
        """Write (N, block_size) whole blocks of the spec's dtype as one record batch. `counts` stays as it is."""
        column = pa.FixedSizeListArray.from_arrays(pa.array(blocks.reshape(-1)), type=self._schema.field(0).type)
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self.blocks += len(blocks)

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def content_size(spec: TokenizerSpec, block_size: int) -> int:
    """Return how many ids of the stream a block holds: its length without [CLS] and [SEP]."""
    return block_size - (spec.prefix is not None) - (spec.suffix is not None)
