"""Writing a corpus: the blocks of the documents, the tokenizer, and the manifest."""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.corpus.integrity import CUT_FILES, FILES, checksums
from potstill.corpus.languages import LanguageReader
from potstill.corpus.manifest import FORMAT_VERSION, UNCUT_FORMAT, Manifest, SplitRecord, TokenizerRecord
from potstill.corpus.many_machines import tokenise_on_ray
from potstill.corpus.packing import BlockWriter, content_size
from potstill.corpus.progress import PrepareProgress
from potstill.corpus.pruning import UsedTokens, prune_corpus
from potstill.corpus.reading import DocumentReader
from potstill.corpus.text_rows import TextRowWriter
from potstill.corpus.tokenise import Tokens, batch_bytes_for, batched, tokenise
from potstill.corpus.tokenizer import TokenizerSpec, save_tokenizer
from potstill.errors import PotstillError, advice, first_line
from potstill.files import complete_folder
from potstill.versions import version
from potstill.wording import agreeing, counted

logger = logging.getLogger(__name__)

HELD_OUT_BYTES = 2**22
"""Bytes of held-out texts that are read at once."""

Unit = Literal["blocks", "texts", "sentences"]
Engine = Literal["processes", "ray"]
Reader = DocumentReader | LanguageReader


def write_corpus(
    folder: Path,
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    spec: TokenizerSpec,
    block_size: int,
    seed: int,
    validation_fraction: float,
    num_proc: int | None,
    memory_limit_mb: int,
    engine: Engine,
    used: UsedTokens | None,
    unit: Unit,
    pad: int | None,
) -> None:
    """Write the corpus of all documents of a reader; its folder appears only when it is complete.

    Args:
        folder: where to write it.
        reader: reads the documents.
        tokenizer: makes their ids, and is saved with the corpus.
        name: of the tokenizer, for the manifest.
        spec: of the tokenizer.
        block_size: tokens of a block.
        seed: chooses the held-out documents.
        validation_fraction: share of the documents that are held out.
        num_proc: tokenising processes; None for one for each available CPU.
        memory_limit_mb: approximate limit of the memory for text and tokens, in MiB.
        engine: what tokenises.
        used: counts the tokens that occur. The vocabulary is cut to them; None keeps it whole.
        unit: what an encoder is to read at once.
        pad: id of [PAD] for blocks of whole texts; None for blocks of running text.

    Raises:
        PotstillError: there is too little text for one block, or the corpus cannot be written.
    """
    num_proc = num_proc or _available_cpus()
    whole = TokenizerRecord(name, type(tokenizer).__name__, spec.vocab_size, tokenizer_fingerprint(tokenizer))
    try:
        with complete_folder(folder) as partial:
            if engine == "ray" and isinstance(reader, DocumentReader):
                found = tokenise_on_ray(reader, spec, seed, validation_fraction, num_proc, partial)
            else:
                batch_bytes = batch_bytes_for(memory_limit_mb, num_proc)
                batches = (
                    batch
                    for first, documents in reader.passes()
                    for batch in batched(
                        documents if used is None else used.of_documents(documents), batch_bytes, first
                    )
                )
                found = tokenise(batches, spec, seed, validation_fraction, num_proc, unit == "sentences")
            with closing(found) as results:
                tokens = results if used is None else used.of_results(results)
                splits, counts, left_out = _write_blocks(partial, tokens, spec, block_size, pad, reader.share_read)
            tokenised = sum(split.documents for split in splits.values())
            _check_splits(splits, content_size(spec, block_size), validation_fraction)
            record = whole
            if used is None:
                save_tokenizer(tokenizer, partial / "tokenizer")
            else:
                tokenizer, spec, kept = prune_corpus(partial, tokenizer, spec, name, block_size, used)
                counts = counts[kept]
                fingerprint = tokenizer_fingerprint(tokenizer)
                record = TokenizerRecord(name, type(tokenizer).__name__, spec.vocab_size, fingerprint)
            np.save(partial / "token_counts.npy", counts)
            Manifest(
                potstill_version=version("potstill"),
                tokenizer=record,
                block_size=block_size,
                dtype=spec.dtype.name,
                seed=seed,
                validation_fraction=validation_fraction,
                splits=splits,
                # A document without any token, for example of control characters, counts as empty.
                skipped={"bad_text": reader.bad_text, "empty": reader.empty + reader.documents - tokenised} | left_out,
                sources=reader.records,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                framing="none" if spec.prefix is None else "cls_sep",
                unit=unit,
                checksums=checksums(partial, FILES if used is None else CUT_FILES),
                whole_tokenizer=None if used is None else whole,
                format_version=UNCUT_FORMAT if used is None else FORMAT_VERSION,
                language_exponent=reader.exponent if isinstance(reader, LanguageReader) else None,
                languages=reader.languages if isinstance(reader, LanguageReader) else [],
            ).save(partial)
    except OSError as error:
        # Readers raise a `PotstillError` for their own errors, so this error is about writing.
        raise PotstillError(
            f"The corpus cannot be written to {folder} ({error.strerror or first_line(error)}): {advice(error)}, or "
            "name another folder with --output_dir; the incomplete corpus was removed."
        ) from error


def _available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_blocks(
    folder: Path,
    results: Iterable[Tokens],
    spec: TokenizerSpec,
    block_size: int,
    pad: int | None,
    share_read: Callable[[], float | None],
) -> tuple[dict[str, SplitRecord], NDArray[np.int64], dict[str, int]]:
    """Write `train.arrow` and `validation.arrow`.

    Args:
        folder: where to write them.
        results: the documents as ids.
        spec: of the tokenizer.
        block_size: L, tokens of a block.
        pad: id of [PAD] for blocks of whole texts; None for blocks of running text.
        share_read: returns the share of the text that is read, from 0 to 1; None if it is not known.

    Returns:
        The records of the splits, the token counts of the train split, and the number of texts left out by reason.
    """

    def writer(name: str, other: BlockWriter | None = None) -> BlockWriter:
        path = folder / f"{name}.arrow"
        if pad is None:
            return BlockWriter(path, spec, block_size)
        return TextRowWriter(path, spec, block_size, pad, other if isinstance(other, TextRowWriter) else None)

    documents = {"train": 0, "validation": 0}
    with (
        writer("train") as train,
        writer("validation", train) as validation,
        TemporaryFile(dir=folder) as held_out,
        PrepareProgress(share_read) as progress,
    ):
        for tokens in results:
            train.add(tokens.train)
            if pad is None:
                validation.add(tokens.validation)
            else:  # a text of the training split may still come, and must not be held out
                held_out.write(tokens.validation.tobytes())
            documents["train"] += tokens.train_documents
            documents["validation"] += tokens.validation_documents
            progress.advance(tokens.read_documents, tokens.read_bytes, len(tokens.train) + len(tokens.validation))
        train.finish()
        held_out.seek(0)
        while piece := held_out.read(HELD_OUT_BYTES):
            validation.add(np.frombuffer(piece, spec.dtype))
        validation.finish()
    splits = {
        name: SplitRecord(documents[name], writer.tokens, writer.blocks, writer.dropped_tokens)
        for name, writer in (("train", train), ("validation", validation))
    }
    left_out = {}
    if isinstance(train, TextRowWriter) and isinstance(validation, TextRowWriter):
        left_out["duplicate"] = train.duplicates + validation.duplicates
        left_out["held_out_but_in_train"] = validation.in_other
        cut, texts = train.cut_texts + validation.cut_texts, train.texts + validation.texts
        if cut:
            logger.warning("%d of %d texts are longer than a block and were cut to %d tokens.", cut, texts, block_size)
    return splits, train.counts, left_out


def _check_splits(splits: dict[str, SplitRecord], content: int, validation_fraction: float) -> None:
    train, validation = splits["train"], splits["validation"]
    if train.blocks == 0:
        documents, tokens = counted(validation.documents, "document"), counted(validation.tokens, "token")
        held_out = f"{documents} with {tokens} {agreeing(validation.documents, 'is', 'are')} held out"
        raise PotstillError(
            f"The text gives {counted(train.tokens, 'token')} to train on, fewer than the {content} of one block: "
            "give more text or a smaller --block_size"
            + (f", or a lower --validation_fraction: {held_out}." if validation.tokens else ".")
        )
    if validation.blocks == 0 and validation_fraction > 0:
        logger.warning(
            "No validation blocks: the %d held-out documents have %d tokens, fewer than the %d of one block; "
            "raise validation_fraction or give more text.",
            validation.documents,
            validation.tokens,
            content,
        )
