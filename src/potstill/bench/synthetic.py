"""A corpus of random tokens, in the form that `prepare` writes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from potstill.corpus import Corpus, Manifest
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.corpus.integrity import checksums
from potstill.corpus.manifest import SplitRecord, TokenizerRecord
from potstill.corpus.packing import TOKENS_PER_RECORD_BATCH, BlockWriter, content_size
from potstill.corpus.text_rows import TextRowWriter, check_rows
from potstill.corpus.tokenizer import TokenizerSpec, control_ids
from potstill.errors import PotstillError
from potstill.versions import version

LOG_LENGTH = 3.37, 0.86
"""Mean and standard deviation of the logarithm of the tokens of a text, without [CLS] and [SEP]. They are those of
12,000 pieces of Simple English Wikipedia, as `prepare --unit sentences` makes them."""


def random_corpus(
    folder: Path,
    blocks: int,
    block_size: int,
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    framed: bool | None = None,
    texts: bool = False,
) -> Corpus:
    """Write a corpus of random tokens with the frequencies of words: the n-th most frequent occurs 1/n times as often.

    The frequencies do not change the time of matrix products. They change that of the embeddings' gradient, which adds
    up equal tokens.

    Args:
        folder: where to write it.
        blocks: number of blocks of the train split. There is no held-out split.
        block_size: L, tokens of a block.
        tokenizer: the blocks are made of its vocabulary, without the special tokens.
        seed: of the random numbers.
        framed: see `TokenizerSpec.of`.
        texts: whether the blocks hold whole texts for a sentence encoder. Their lengths have the distribution of pieces
            of one to four sentences of Simple English Wikipedia, cut to a block.

    Raises:
        PotstillError: a block has no room for text, or the vocabulary has no words.
    """
    spec = TokenizerSpec.of(tokenizer, "of the bench", framed)
    if content_size(spec, block_size) < 1:
        raise PotstillError(f"--block_size is {block_size}, which leaves no room for text: give 3 or more.")
    words = np.setdiff1d(np.arange(spec.vocab_size), control_ids(tokenizer)).astype(spec.dtype)
    if len(words) == 0:
        raise PotstillError(
            f"A vocabulary of {spec.vocab_size} entries has only special tokens: give --vocab_size 100."
        )
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    pad = check_rows(spec, tokenizer, "of the bench") if texts else None
    # Blocks of texts have padding, so as many tokens as fit give more blocks. A few texts may occur again.
    tokens = round(1.05 * blocks * block_size) if texts else blocks * content_size(spec, block_size)

    def writer(split: str) -> BlockWriter:
        path = folder / f"{split}.arrow"
        return BlockWriter(path, spec, block_size) if pad is None else TextRowWriter(path, spec, block_size, pad)

    with writer("train") as train, writer("validation") as validation:
        while train.tokens < tokens:
            size = min(TOKENS_PER_RECORD_BATCH, tokens - train.tokens)
            ranks = (len(words) ** rng.random(size)).astype(np.int64) - 1  # log-uniform: Zipf's law
            ids = words[ranks]
            train.add(ids if pad is None else _ended(ids, spec.separator, rng))
        train.finish()
        validation.finish()
    np.save(folder / "token_counts.npy", train.counts)
    tokenizer.save_pretrained(folder / "tokenizer")
    Manifest(
        potstill_version=version("potstill"),
        tokenizer=TokenizerRecord(
            "of random tokens", type(tokenizer).__name__, spec.vocab_size, tokenizer_fingerprint(tokenizer)
        ),
        block_size=block_size,
        dtype=spec.dtype.name,
        seed=seed,
        validation_fraction=0.0,
        splits={
            name: SplitRecord(documents, writer.tokens, writer.blocks, writer.dropped_tokens)
            for name, documents, writer in (("train", 1, train), ("validation", 0, validation))
        },
        skipped={"bad_text": 0, "empty": 0},
        sources=[],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        checksums=checksums(folder),
        framing="none" if spec.prefix is None else "cls_sep",
        unit="texts" if texts else "blocks",
    ).save(folder)
    return Corpus.open(folder, verify=False)


def _ended(ids: NDArray[Any], separator: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return ids (N,) with a separator at the end of each text. The last one ends a text too."""
    number = len(ids) // 2 + 1
    lengths = 2 + np.exp(rng.normal(*LOG_LENGTH, number)).astype(np.int64)
    ends = np.cumsum(lengths) - 1
    ids = ids.copy()
    ids[ends[ends < len(ids) - 2]] = separator  # so that the last text has a token
    ids[-1] = separator
    return ids
