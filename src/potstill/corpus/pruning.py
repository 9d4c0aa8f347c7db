"""Cutting the vocabulary of a corpus to the tokens that it uses, while it is prepared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from potstill.corpus.blocks import Blocks
from potstill.corpus.packing import BlockWriter
from potstill.corpus.tokenise import Batch, Tokens, tokenise
from potstill.corpus.tokenizer import TokenizerSpec
from potstill.corpus.tokenizer_pruning import prune_tokenizer, tokens_to_keep
from potstill.errors import PotstillError

SAMPLE_BYTES = 2**20
"""Text that both tokenizers are compared on: about a second's work."""


class UsedTokens:
    """Notes, while text is tokenised, which tokens it uses, and keeps a sample of its documents.

    Args:
        spec: of the whole tokenizer.
        sample_bytes: of the sample at most, but for one document. Its documents are evenly spaced.
    """

    def __init__(self, spec: TokenizerSpec, sample_bytes: int = SAMPLE_BYTES) -> None:
        self.used = np.zeros(spec.vocab_size, dtype=np.bool_)
        self.sample: list[bytes] = []
        self._sample_bytes = sample_bytes
        self._number, self._step = 0, 1

    def of_documents(self, documents: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the documents. Further calls continue with the documents of further passes."""
        for document in documents:
            if self._number % self._step == 0:
                self.sample.append(document)
                while len(self.sample) > 1 and sum(map(len, self.sample)) > self._sample_bytes:
                    self.sample, self._step = self.sample[::2], 2 * self._step
            self._number += 1
            yield document

    def of_results(self, results: Iterable[Tokens]) -> Iterator[Tokens]:
        """Yield what the documents were tokenised to. Documents held out count too."""
        for tokens in results:
            self.used[tokens.train] = True
            self.used[tokens.validation] = True
            yield tokens


def prune_corpus(
    folder: Path, tokenizer: PreTrainedTokenizerFast, spec: TokenizerSpec, name: str, block_size: int, notes: UsedTokens
) -> tuple[PreTrainedTokenizerFast, TokenizerSpec, NDArray[np.int64]]:
    """Cut the vocabulary of the blocks in a folder, and write `tokenizer/` and `kept_tokens.npy` beside them.

    Args:
        folder: with `train.arrow` and `validation.arrow` in the ids of the whole tokenizer.
        tokenizer: the whole one.
        spec: of the whole tokenizer.
        name: of the tokenizer.
        block_size: tokens of a block.
        notes: of the text in the blocks.

    Returns:
        The cut tokenizer, its spec, and the ids of the kept tokens in the whole tokenizer, (V,) int64.

    Raises:
        PotstillError: the tokenizer cannot be cut, or once cut does not read the text as before.
        OSError: the files cannot be written.
    """
    kept = tokens_to_keep(tokenizer, np.flatnonzero(notes.used))
    cut = prune_tokenizer(tokenizer, kept, folder / "tokenizer")
    cut_spec = TokenizerSpec.of(cut, name, spec.prefix is not None)
    new = np.full(spec.vocab_size, len(kept), dtype=np.int64)  # what is not kept has no id
    new[kept] = np.arange(len(kept))
    if not np.array_equal(new[_ids(notes.sample, spec)], _ids(notes.sample, cut_spec)):
        raise PotstillError(
            f"The tokenizer {name} does not read the text as before once its vocabulary is cut: leave "
            "--prune_vocabulary out."
        )
    np.save(folder / "kept_tokens.npy", kept)
    for split in ("train", "validation"):
        _renumber(folder / f"{split}.arrow", new, cut_spec, block_size)
    return cut, cut_spec, kept


def _ids(documents: list[bytes], spec: TokenizerSpec) -> NDArray[np.unsignedinteger]:
    with closing(tokenise([Batch(0, documents)], spec, seed=0, validation_fraction=0, num_proc=1)) as results:
        return next(results).train


def _renumber(path: Path, new: NDArray[np.int64], spec: TokenizerSpec, block_size: int) -> None:
    """Write the blocks of a file again in other ids."""
    whole = path.with_suffix(".whole")
    path.rename(whole)
    with BlockWriter(path, spec, block_size) as writer:
        for ids in Blocks(whole).pieces():
            writer.write_blocks(new[ids.reshape(-1, block_size)].astype(spec.dtype))
        writer.close()
    whole.unlink()
