"""A corpus of random tokens, in the form that `prepare` writes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from potstill.corpus import Corpus, Manifest
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.corpus.integrity import checksums
from potstill.corpus.manifest import SplitRecord, TokenizerRecord
from potstill.corpus.packing import TOKENS_PER_RECORD_BATCH, BlockWriter, content_size
from potstill.corpus.tokenizer import TokenizerSpec, control_ids
from potstill.errors import PotstillError
from potstill.versions import version


def random_corpus(
    folder: Path,
    blocks: int,
    block_size: int,
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    framed: bool | None = None,
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
    tokens = blocks * content_size(spec, block_size)
    with (
        BlockWriter(folder / "train.arrow", spec, block_size) as train,
        BlockWriter(folder / "validation.arrow", spec, block_size) as validation,
    ):
        while train.tokens < tokens:
            size = min(TOKENS_PER_RECORD_BATCH, tokens - train.tokens)
            ranks = (len(words) ** rng.random(size)).astype(np.int64) - 1  # log-uniform: Zipf's law
            train.add(words[ranks])
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
    ).save(folder)
    return Corpus.open(folder, verify=False)
