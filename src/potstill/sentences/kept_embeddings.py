"""A teacher's embeddings of all texts of a corpus, computed once and kept on disk for this run and the next ones."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from potstill.corpus import Blocks
from potstill.errors import PotstillError, advice, first_line
from potstill.files import write_text

BLOCKS_OF_CHUNK = 256
"""Blocks whose embeddings are written, marked and checked together. An interruption loses one chunk at most."""

DTYPE = np.dtype(np.float16)
"""Type in which embeddings are kept. Rounding to it takes less than 1e-7 off the cosine to the exact one."""

LARGEST_ERROR = 1e-3
"""Rounding may change an embedding by this share of its length. Without overflow or underflow it is half of that."""

RECORD, FIRST, EMBEDDINGS, CHUNKS = "record.json", "first_text.npy", "embeddings.bin", "chunks.bin"
_MARK = np.uint64(1 << 32)
_FOLDER = "POTSTILL_CACHE"

Embed = Callable[[list[int]], Tensor]
"""Numbers of B blocks → (B, S, D), the embeddings of their texts."""


class KeptEmbeddings:
    """The embeddings (T, D) of the T texts of blocks, in the order of the texts, in a file that is mapped into memory.

    The file is filled in chunks of blocks. Each complete chunk is marked with a checksum, in a file of its own. So a
    computation that was interrupted goes on where it ended, several processes can share the work, and a damaged file
    is found out.

    Args:
        folder: holds the files. `create` makes it.
        slots: S, the largest number of texts in a block.

    Attributes:
        width: D.

    Raises:
        PotstillError: the files cannot be read, or do not fit each other.
    """

    def __init__(self, folder: Path, slots: int) -> None:
        self.folder = folder
        self.slots = slots
        try:
            self._first = np.load(folder / FIRST, mmap_mode="r")
            self.width = int(json.loads((folder / RECORD).read_text(encoding="utf-8"))["width"])
            shape = int(self._first[-1]), self.width
            self._embeddings = np.memmap(folder / EMBEDDINGS, DTYPE, "r", shape=shape)
            if (folder / CHUNKS).stat().st_size != 8 * self.chunks:
                raise ValueError(f"{CHUNKS} has another length")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise PotstillError(
                f"The teacher's embeddings in {folder} cannot be read ({first_line(error)}): remove that folder."
            ) from error

    @classmethod
    def create(cls, folder: Path, counts: NDArray[np.int64], slots: int, record: dict[str, Any]) -> KeptEmbeddings:
        """Make the files without any embedding, unless they are there.

        Args:
            folder: where to make them.
            counts: (N,) number of texts in each block.
            slots: S.
            record: what people want to know of the embeddings; `width` is D.

        Raises:
            PotstillError: there is too little space, or the folder cannot be written to.
        """
        try:
            if not (folder / RECORD).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                size = int(counts.sum()) * record["width"] * DTYPE.itemsize
                free = shutil.disk_usage(folder).free
                if free < size:
                    raise PotstillError(
                        f"The teacher's embeddings take {size / 1e9:,.1f} GB, and {folder.parent} has "
                        f"{free / 1e9:,.1f} GB left: free some space, or name another folder in {_FOLDER}."
                    )
                np.save(folder / FIRST, np.concatenate([[0], np.cumsum(counts)]))
                for name, length in ((EMBEDDINGS, size), (CHUNKS, 8 * -(-len(counts) // BLOCKS_OF_CHUNK))):
                    with open(folder / name, "wb") as file:
                        file.truncate(length)
                write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")  # last: the others are complete
        except OSError as error:
            raise _unwritable(folder, error) from error
        return cls(folder, slots)

    @property
    def texts(self) -> int:
        """T, the number of texts."""
        return int(self._first[-1])

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-(len(self._first) - 1) // BLOCKS_OF_CHUNK)

    def texts_in(self, chunk: int) -> int:
        """Return the number of texts in a chunk."""
        texts = self._texts_of(chunk)
        return texts.stop - texts.start

    def missing(self, verify: bool = False) -> list[int]:
        """Return the numbers of the chunks that are not there.

        Args:
            verify: whether to read all embeddings and compare their checksums. Damaged chunks count as missing then,
                and lose their marks.
        """
        marks = np.fromfile(self.folder / CHUNKS, np.uint64)
        absent = [chunk for chunk in range(self.chunks) if not marks[chunk] & _MARK]
        if not verify:
            return absent
        there = sorted(set(range(self.chunks)) - set(absent))
        damaged = [chunk for chunk in there if marks[chunk] != _mark(self._embeddings[self._texts_of(chunk)])]
        for chunk in damaged:
            self._write(CHUNKS, 8 * chunk, np.zeros(1, np.uint64))
        return sorted([*absent, *damaged])

    def compute(self, chunks: list[int], embed: Embed, batch_size: int) -> Iterator[int]:
        """Compute and write chunks; yield the number of texts after each batch.

        Args:
            chunks: numbers of chunks.
            embed: computes embeddings.
            batch_size: B, the blocks that `embed` gets at once. If fewer are left, some are repeated, because code is
                compiled for a number of blocks.

        Raises:
            PotstillError: an embedding is not finite, or float16 cannot hold it; or the files cannot be written.
        """
        for chunk in chunks:
            blocks = list(self._blocks_of(chunk))
            found = []
            for start in range(0, len(blocks), batch_size):
                batch = blocks[start : start + batch_size]
                embeddings = embed([*batch, *[batch[-1]] * (batch_size - len(batch))])[: len(batch)]
                counts = torch.from_numpy(np.diff(self._first)[batch[0] : batch[-1] + 1])
                filled = (torch.arange(self.slots) < counts[:, None]).to(embeddings.device)
                found.append(_rounded(embeddings[filled].float().cpu().numpy()))
                yield len(found[-1])
            rows = np.concatenate(found)
            self._write(EMBEDDINGS, self._texts_of(chunk).start * self.width * DTYPE.itemsize, rows)
            self._write(CHUNKS, 8 * chunk, np.array([_mark(rows)]))

    def of_blocks(self, blocks: NDArray[np.int64]) -> Tensor:
        """Return (B, S, D) float16: the embeddings of the texts in B blocks, and zeros where a block has fewer."""
        found = np.zeros((len(blocks), self.slots, self.width), DTYPE)
        for row, block in zip(found, blocks.tolist(), strict=True):
            start, end = self._first[block : block + 2]
            row[: end - start] = self._embeddings[start:end]
        return torch.from_numpy(found)

    def _blocks_of(self, chunk: int) -> range:
        return range(chunk * BLOCKS_OF_CHUNK, min((chunk + 1) * BLOCKS_OF_CHUNK, len(self._first) - 1))

    def _texts_of(self, chunk: int) -> slice:
        blocks = self._blocks_of(chunk)
        return slice(int(self._first[blocks.start]), int(self._first[blocks.stop]))

    def _write(self, name: str, place: int, values: NDArray[Any]) -> None:
        """Write values into a file at a place in bytes. A map would end the process if the disk were full."""
        try:
            with open(self.folder / name, "r+b") as file:
                file.seek(place)
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())  # a mark must not reach the disk before its embeddings
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def __getstate__(self) -> tuple[Path, int]:
        return self.folder, self.slots

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # a spawned worker maps the file again


class EmbeddedBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of whole texts with the teacher's embeddings of the texts, `embeddings` (B, S, D).

    Args:
        blocks: the blocks.
        kept: the embeddings of their texts.
    """

    def __init__(self, blocks: Blocks, kept: KeptEmbeddings) -> None:
        self.blocks = blocks
        self.kept = kept

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, sample_index: int) -> dict[str, Tensor]:
        """Return one block: see `Blocks`."""
        return {name: values[0] for name, values in self.__getitems__([sample_index]).items()}

    def __getitems__(self, sample_indices: list[int]) -> dict[str, Tensor]:
        """Return a batch of blocks: see `Blocks`."""
        numbers = np.asarray(sample_indices, dtype=np.int64) % len(self.blocks)
        return self.blocks.__getitems__(sample_indices) | {"embeddings": self.kept.of_blocks(numbers)}


def texts_per_block(blocks: Blocks, first: int) -> NDArray[np.int64]:
    """Return (N,) the number of texts in each block.

    Args:
        blocks: of whole texts.
        first: id of the token that begins each text.
    """
    pieces = [(ids.reshape(-1, blocks.block_size) == first).sum(1) for ids in blocks.pieces()]
    return np.concatenate(pieces).astype(np.int64)


def _rounded(embeddings: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return embeddings (N, D) in the type in which they are kept.

    Raises:
        PotstillError: an embedding is not finite, or its numbers are too large or too small for that type.
    """
    if not np.isfinite(embeddings).all():
        raise PotstillError("The teacher's embedding of a text is not finite: its weights are broken.")
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = embeddings.astype(DTYPE)
        wrong = np.linalg.norm(rounded.astype(np.float32) - embeddings, axis=1)
        fine = wrong <= LARGEST_ERROR * np.linalg.norm(embeddings, axis=1)
    if not fine.all():
        raise PotstillError(
            "The teacher's embeddings have numbers that are too large or too small for 16 bits, so they cannot be "
            "kept: leave --teacher_embeddings out."
        )
    return rounded


def _mark(rows: NDArray[np.float16]) -> np.uint64:
    """Return the mark of a complete chunk: a checksum, and a bit that is never 0."""
    return _MARK | np.uint64(zlib.crc32(np.ascontiguousarray(rows).tobytes()))


def _unwritable(folder: Path, error: OSError) -> PotstillError:
    return PotstillError(
        f"The teacher's embeddings cannot be written to {folder} ({error.strerror or first_line(error)}): "
        f"{advice(error)}, or name another folder in {_FOLDER}."
    )
