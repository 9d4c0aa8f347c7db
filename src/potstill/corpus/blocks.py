"""Read a prepared corpus for training: its blocks, and their order."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from potstill.corpus.arrow_files import check_stored_plainly
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.corpus.integrity import check_files, check_ids, checksums, fingerprint_of, unusable
from potstill.corpus.manifest import Manifest
from potstill.corpus.tokenizer import load_tokenizer, placeholders, warn_once
from potstill.errors import PotstillError
from potstill.wording import counted


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """The blocks of one split, read through a memory map that every process on the machine shares.

    An index is a *sample index*, `epoch * len(blocks) + block`: it identifies one block in one epoch. It is returned
    with the ids because it decides the masks. So the masks do not depend on workers, ranks or the size of a batch.

    Args:
        path: path of an Arrow IPC stream with one column of fixed-size lists of unsigned integers.

    Raises:
        PotstillError: the file is missing, cannot be read, or is damaged.

    Attributes:
        block_size: tokens of a block, L.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_stored_plainly(path)
            buffer = pa.memory_map(str(path)).read_buffer()
            self._opened = _version_of(path)
            reader = pa.ipc.open_stream(buffer)
            batches = list(reader)
            kind = reader.schema.field(0).type
            self.block_size = int(kind.list_size)
            dtype = np.dtype(kind.value_type.to_pandas_dtype())
            if dtype.kind != "u":
                raise ValueError(f"its blocks are of {dtype}")
            places = [batch.column(0).values.buffers()[1].address - buffer.address for batch in batches]
        except Exception as error:  # pyarrow raises almost any type for a damaged file
            raise unusable(path, error) from error
        # The whole file as one array, including the bytes between the ids. A block is then one slice of the array, and
        # reading a batch of any blocks needs no look-up in Arrow's own structures.
        self._ids: NDArray[Any] = np.frombuffer(buffer, dtype=dtype, count=buffer.size // dtype.itemsize)
        lengths = np.array([len(batch) for batch in batches], dtype=np.int64)
        self._first_block = np.concatenate([[0], np.cumsum(lengths)])
        self._first_id = np.array(places, dtype=np.int64) // dtype.itemsize
        ends = self._first_id + lengths * self.block_size
        if self.block_size < 1 or (self._first_id < 0).any() or (ends > len(self._ids)).any():
            raise unusable(path, ValueError("its blocks lie outside it"))

    def __len__(self) -> int:
        return int(self._first_block[-1])

    def __getitem__(self, sample_index: int) -> dict[str, torch.Tensor]:
        """Read one block.

        Returns:
            `input_ids`, int64 (L,), and `sample_index`, an int64 scalar.
        """
        items = self.__getitems__([sample_index])
        return {name: values[0] for name, values in items.items()}

    def __getitems__(self, sample_indices: list[int]) -> dict[str, torch.Tensor]:
        """Read a batch of B blocks at once (PyTorch's data loader calls this).

        Returns:
            `input_ids`, int64 (B, L), and `sample_index`, int64 (B,).

        Raises:
            IndexError: a sample index is negative, or there are no blocks.
        """
        numbers = np.asarray(sample_indices, dtype=np.int64)
        if len(self) == 0 or (numbers < 0).any():
            raise IndexError(f"sample indices {sample_indices[:3]}… of {len(self)} blocks")
        blocks = numbers % len(self)
        batches = np.searchsorted(self._first_block, blocks, side="right") - 1
        starts = self._first_id[batches] + (blocks - self._first_block[batches]) * self.block_size
        input_ids = np.empty((len(starts), self.block_size), dtype=np.int64)
        for row, start in zip(input_ids, starts.tolist(), strict=True):
            row[:] = self._ids[start : start + self.block_size]
        return {"input_ids": torch.from_numpy(input_ids), "sample_index": torch.from_numpy(numbers.copy())}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Without this method Python would count up for ever, because every sample index is valid.
        return (self[block] for block in range(len(self)))

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Yield the ids of all blocks in order, as 1-D arrays that each hold complete blocks."""
        for first, blocks in zip(self._first_id.tolist(), np.diff(self._first_block).tolist(), strict=True):
            yield self._ids[first : first + blocks * self.block_size]

    def __getstate__(self) -> tuple[Path, tuple[int, int, int]]:
        return self.path, self._opened

    def __setstate__(self, state: tuple[Path, tuple[int, int, int]]) -> None:
        # A spawned worker maps the file again; all maps share the same memory pages.
        path, opened = state
        self.__init__(path)  # type: ignore[misc]
        if self._opened != opened:
            raise PotstillError(
                f"{path} has changed since the run began: prepare text into another folder while a run reads this one."
            )


def _version_of(path: Path) -> tuple[int, int, int]:
    """Return what tells whether a path leads to the same, unchanged file."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class ShuffledSampler(Sampler[int]):
    """The sample indices of one epoch in random order. Only seed and epoch determine the permutation of the blocks.

    The blocks at the end that do not fill an optimiser step are left out; each epoch leaves out different ones.

    Args:
        blocks: number of blocks of the corpus.
        global_batch: blocks of one optimiser step, over all ranks and accumulation steps.
        seed: seed of the permutations, 0 or more.

    Raises:
        PotstillError: there are fewer blocks than one step takes.
    """

    def __init__(self, blocks: int, global_batch: int, seed: int) -> None:
        if blocks < global_batch:
            raise PotstillError(
                f"The corpus has {counted(blocks, 'block')}, fewer than the {global_batch} of one optimiser step: "
                "lower --per_device_train_batch_size or --gradient_accumulation_steps, or prepare more text."
            )
        self.blocks = blocks
        self.global_batch = global_batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose sample indices the next iteration yields."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.blocks)[: len(self)]
        first = self.epoch * self.blocks
        for start in range(0, len(order), 2**16):  # in pieces, because Python integers take four times the memory
            yield from (first + order[start : start + 2**16]).tolist()

    def __len__(self) -> int:
        return self.blocks // self.global_batch * self.global_batch


class Corpus:
    """A prepared corpus: a folder that `potstill.corpus.prepare.prepare` wrote.

    Attributes:
        folder: path of the corpus.
        manifest: the record of its sources and options.
        train: blocks to train on.
        validation: blocks of held-out documents; may be empty.
        token_counts: (vocab_size,) int64, occurrences of each id in the contents of the train split's blocks.
        kept_tokens: (vocab_size,) int64, the ids of the tokens in the whole vocabulary that this one is cut from; None
            where it is not cut.
    """

    def __init__(self, folder: Path, manifest: Manifest, train: Blocks, validation: Blocks) -> None:
        self.folder = folder
        self.manifest = manifest
        self.train = train
        self.validation = validation

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "Corpus":
        """Map a prepared corpus into memory.

        Args:
            folder: path of the corpus.
            verify: whether to read the files once, at about 1 GB a second, to make sure that they are unchanged. The
                first of the processes that a launcher starts on a machine does this for all.

        Raises:
            PotstillError: the folder is no corpus, is incomplete or damaged, or is in the format of a newer version.
        """
        folder = Path(folder)
        verify = verify and os.environ.get("LOCAL_RANK", "0") == "0"
        manifest = Manifest.load(folder)
        if verify and manifest.checksums:
            check_files(folder, manifest.checksums)
        splits = {name: Blocks(folder / f"{name}.arrow") for name in ("train", "validation")}
        for name, blocks in splits.items():
            expected = manifest.splits[name].blocks, manifest.block_size
            if (len(blocks), blocks.block_size) != expected:
                raise PotstillError(
                    f"{blocks.path} holds {len(blocks)} blocks of {blocks.block_size} tokens, but its manifest says "
                    f"{expected[0]} of {expected[1]}: prepare the corpus again."
                )
        corpus = cls(folder, manifest, splits["train"], splits["validation"])
        if verify and not manifest.checksums:
            size = manifest.tokenizer.vocab_size
            check_ids(corpus.train.path, corpus.train.pieces(), len(corpus.train), size, corpus.token_counts)
            check_ids(corpus.validation.path, corpus.validation.pieces(), len(corpus.validation), size)
        return corpus

    @cached_property
    def fingerprint(self) -> str:
        """One hash of the training data. Two corpora have the same one only if their files are the same in each byte.

        Raises:
            PotstillError: a file of a corpus without checksums cannot be read.
        """
        return fingerprint_of(self.manifest.checksums or checksums(self.folder))

    def __str__(self) -> str:
        parts = [f"{self.folder} · blocks of {self.manifest.block_size} tokens"]
        for name, split in self.manifest.splits.items():
            parts.append(
                f"{name}: {counted(split.blocks, 'block')} of {counted(split.documents, 'document')}, "
                f"{counted(split.tokens, 'token')} ({split.dropped_tokens:,} dropped)"
            )
        if (whole := self.manifest.whole_tokenizer) is not None:
            parts.append(f"vocabulary: {self.manifest.tokenizer.vocab_size:,} of {whole.vocab_size:,} tokens kept")
        if self.manifest.language_exponent is not None:
            exponent = self.manifest.language_exponent
            parts.append(
                f"{counted(len(self.manifest.languages), 'language')} by their size to the power of {exponent:g}"
            )
        skipped = ", ".join(f"{count:,} {why.replace('_', ' ')}" for why, count in self.manifest.skipped.items())
        what = "documents" if self.manifest.unit == "blocks" else "documents and texts"
        return " · ".join([*parts, f"skipped {what}: {skipped}"])

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        """See `Corpus`; the file is read at the first use."""
        path = self.folder / "token_counts.npy"
        try:
            counts = np.load(path, allow_pickle=False)
            if counts.shape != (self.manifest.tokenizer.vocab_size,) or counts.dtype != np.int64:
                raise ValueError(f"it holds {counts.dtype} of shape {counts.shape}")
            return counts
        except Exception as error:  # numpy parses a damaged header as Python, which fails in many ways
            raise unusable(path, error) from error

    @cached_property
    def kept_tokens(self) -> NDArray[np.int64] | None:
        """See `Corpus`; read on first use."""
        whole = self.manifest.whole_tokenizer
        if whole is None:
            return None
        path = self.folder / "kept_tokens.npy"
        try:
            kept = np.load(path, allow_pickle=False)
            if kept.shape != (self.manifest.tokenizer.vocab_size,) or kept.dtype != np.int64:
                raise ValueError(f"it holds {kept.dtype} of shape {kept.shape}")
            if (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= whole.vocab_size:
                raise ValueError("its ids are not those of the vocabulary in ascending order")
            return kept
        except Exception as error:  # as above
            raise unusable(path, error) from error

    def tokenizer(self, token_types: bool = True) -> PreTrainedTokenizerFast:
        """Load the tokenizer that made the corpus; see `load_tokenizer` for `token_types`.

        Raises:
            PotstillError: the tokenizer's folder is missing or damaged.
        """
        folder = self.folder / "tokenizer"
        tokenizer = load_tokenizer(str(folder), token_types)
        try:
            found = tokenizer_fingerprint(tokenizer)
        except Exception as error:  # `tokenizers` raises a bare Exception for a token that its vocabulary lacks
            raise unusable(folder, error) from error
        if found != self.manifest.tokenizer.fingerprint:
            raise unusable(folder, ValueError("it turns text into other ids than when the corpus was prepared"))
        return tokenizer

    @cached_property
    def framed(self) -> bool:
        """Whether [CLS] and [SEP] stand around each block."""
        if self.manifest.framing:
            return self.manifest.framing == "cls_sep"
        tokenizer = self.tokenizer()
        return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None

    def check_framing(self, causal: bool) -> None:
        """Make sure that the blocks are framed as a model reads them.

        Args:
            causal: whether each token of the model sees only the tokens before it.

        Raises:
            PotstillError: a causal model would learn to predict the end of a block, or another model finds no [CLS].
        """
        if self.manifest.unit != "blocks":
            raise PotstillError(
                f"The corpus {self.folder} holds whole texts (--unit {self.manifest.unit}) for a sentence encoder, but "
                "this is a language model: prepare the text again without --unit."
            )
        if causal and self.framed:
            raise PotstillError(
                f"The blocks of {self.folder} begin with [CLS] and end with [SEP], which is for a model that reads "
                "both ways, but the model is causal: prepare the text again with --frame_blocks False."
            )
        if not causal and self.manifest.framing == "none" and self.tokenizer().cls_token_id is not None:
            raise PotstillError(
                f"The blocks of {self.folder} have no [CLS] and [SEP] around them, which is for a causal model, but "
                "the model reads both ways: prepare the text again without --frame_blocks False."
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Make sure that a model's tokenizer is the one that made the corpus.

        Args:
            tokenizer: the model's tokenizer.
            name: the model's name in the message.

        Raises:
            PotstillError: the two turn text into different ids.
        """
        if self.manifest.format_version < 2 and (known := placeholders(tokenizer)):
            warn_once(
                f"The corpus {self.folder} was prepared by potstill {self.manifest.potstill_version}, which read the "
                f"special tokens {', '.join(sorted(known.values())[:5])} in the text as plain text: prepare the corpus "
                "again if the text has such tokens."
            )
        found, whole = tokenizer_fingerprint(tokenizer), self.manifest.whole_tokenizer
        if whole is not None and found == whole.fingerprint != self.manifest.tokenizer.fingerprint:
            raise PotstillError(
                f"The vocabulary of the corpus {self.folder} is cut to {self.manifest.tokenizer.vocab_size} of "
                f"{whole.vocab_size} tokens, but that of {name} is whole: give {self.folder / 'tokenizer'}."
            )
        if found != self.manifest.tokenizer.fingerprint:
            raise PotstillError(
                f"The corpus {self.folder} was prepared with the tokenizer {self.manifest.tokenizer.name}, which is "
                f"different from that of {name}: prepare the text again with --tokenizer {name}."
            )

    def cut_needed(self, tokenizer: PreTrainedTokenizerBase, name: str) -> NDArray[np.int64] | None:
        """Return the tokens that a model has to be cut to before it can read the corpus; None if it reads it as it is.

        Args:
            tokenizer: the model's tokenizer.
            name: how to call the model in the message.

        Raises:
            PotstillError: the corpus was prepared with another tokenizer.
        """
        whole = self.manifest.whole_tokenizer
        if whole is not None and tokenizer_fingerprint(tokenizer) == whole.fingerprint:
            return self.kept_tokens
        self.check_tokenizer(tokenizer, name)
        return None
