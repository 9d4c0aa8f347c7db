"""The verb `prepare`: turn documents into token blocks of one length."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from potstill.corpus.blocks import Corpus
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.corpus.integrity import CUT_FILES, FILES, checksums
from potstill.corpus.languages import LanguageReader
from potstill.corpus.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    UNCUT_FORMAT,
    Manifest,
    SplitRecord,
    TokenizerRecord,
)
from potstill.corpus.many_machines import tokenise_on_ray
from potstill.corpus.packing import BlockWriter, content_size
from potstill.corpus.progress import PrepareProgress
from potstill.corpus.pruning import UsedTokens, prune_corpus
from potstill.corpus.reading import DocumentReader, OnBadText, ReadingOptions, SampleBy
from potstill.corpus.sources import find_sources_of_each
from potstill.corpus.text_rows import TextRowWriter, check_rows
from potstill.corpus.tokenise import Tokens, batch_bytes_for, batched, tokenise
from potstill.corpus.tokenizer import TokenizerSpec, load_tokenizer, save_tokenizer
from potstill.corpus.tokenizer_pruning import tokens_to_keep
from potstill.corpus.worker import is_held_out
from potstill.errors import PotstillError, advice, first_line
from potstill.files import claimed_folder, complete_folder
from potstill.processes import once
from potstill.versions import version

if TYPE_CHECKING:
    from potstill.student.interface import TokenizerKind

logger = logging.getLogger(__name__)

HELD_OUT_BYTES = 2**22
"""Bytes of held-out texts that are read at once."""

Unit = Literal["blocks", "texts", "sentences"]
Engine = Literal["processes", "ray"]
Reader = DocumentReader | LanguageReader


def prepare(
    text: list[str],
    output_dir: str,
    tokenizer: str | None = None,
    block_size: int = 512,
    text_column: str = "text",
    sample_by: Literal["line", "paragraph", "document"] = "line",
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    validation_fraction: float = 0.01,
    num_proc: int | None = None,
    memory_limit_mb: int = 1024,
    on_bad_text: Literal["error", "skip"] = "error",
    train_tokenizer: bool = False,
    vocab_size: int = 30522,
    lowercase: bool | None = None,
    seed: int = 0,
    overwrite_output_dir: bool = False,
    break_lock: bool = False,
    model_type: str | None = None,
    frame_blocks: bool | None = None,
    prune_vocabulary: bool = False,
    unit: Literal["blocks", "texts", "sentences"] = "blocks",
    language_exponent: float | None = None,
    engine: Literal["processes", "ray"] = "processes",
) -> Corpus:
    """Tokenise documents and split them into blocks of one length, ready for training.

    The documents of a split are joined with [SEP] into one stream. Each block is [CLS], the next `block_size - 2` ids
    of the stream, and [SEP]. There is no padding, and only the last incomplete block is dropped. (With a tokenizer that
    has no [CLS] and [SEP], such as GPT-2's, blocks are pieces of the stream alone, and its end-of-text token joins the
    documents.) Every byte of the result is the same for any `num_proc` and `memory_limit_mb`. The folder appears only
    when it is complete; its manifest holds the SHA-256 of each file that training reads.

    The teacher's own placeholders (special tokens without a role, such as <url>) stay single tokens, and are counted
    and masked like other content. A literal [CLS] or [MASK] in the text stays plain text. If the teacher's folder does
    not say whether text is lower-cased, its vocabulary decides, and the decision is logged.

    From Python, `tokenizer` may also be a fast tokenizer itself.

    Args:
        text: Files (.txt, .jsonl, .json, .csv, .tsv, each plain, .gz, .xz or .zst; .parquet), folders with all their
            subfolders and links, patterns, or a hub dataset. A document may have up to 32 MiB.
        output_dir: Folder to write the corpus to.
        tokenizer: Folder or hub id of the teacher's tokenizer.
        block_size: Tokens of a block, including [CLS] and [SEP].
        text_column: Column, or key of a JSON object, that holds the text.
        sample_by: The unit that is a document in a .txt file: a line, a paragraph (between blank lines) or the file.
        dataset_config_name: Configuration of a hub dataset.
        dataset_split: Split of a hub dataset or of a saved `datasets` folder.
        validation_fraction: Share of the documents held out for validation, at least 0 and below 1.
        num_proc: Tokenising processes; by default one for each available CPU.
        memory_limit_mb: Approximate limit, in MiB, of the memory for text and tokens over all processes. A document of
            several MiB needs about 90 times its size in addition.
        on_bad_text: Treatment of a document that is not UTF-8: stop with an error, or skip and count it.
        train_tokenizer: Train a tokenizer on the same text instead of naming one: a WordPiece vocabulary, unless
            `model_type` says otherwise.
        vocab_size: Entries of the trained vocabulary.
        lowercase: Whether the trained vocabulary is lower-cased and without accents. By default WordPiece is;
            byte-level BPE never is.
        seed: Seed that chooses the held-out documents.
        overwrite_output_dir: Replace the corpus that is in the output folder.
        break_lock: Take over the lock of the output folder that a process of another machine left, as after a failure
            of that machine.
        model_type: Architecture that decides the kind of tokenizer to train, by its name in transformers: roberta gets
            byte-level BPE. Give `pretrain` the same name.
        prune_vocabulary: Cut the vocabulary to the tokens that the text uses, and keep control tokens and single
            characters. `distill` then cuts the teacher too, and its student is smaller. The text is still tokenised
            into the same pieces.
        unit: What an encoder is to read at once. `blocks` are for language models: blocks of running text. `texts` and
            `sentences` are for sentence encoders. `texts` keeps each document whole, and `sentences` splits documents
            into pieces of one to four sentences; several of them share a block, and none attends to another. Texts
            longer than a block are cut. Texts that occur again are left out, and so are held-out texts that the
            training split has too.
        frame_blocks: Put [CLS] before and [SEP] after each block. By default blocks are framed if the tokenizer has
            both tokens. A causal model, such as a GPT-2, reads blocks without a frame.
        language_exponent: Take each entry of `text` as one language, and read each in proportion to its size in bytes
            to the power of this exponent, from 0 to 1; multilingual BERT has 0.7. Large languages are then read in
            part, and small ones repeatedly. The shares are in the manifest.
        engine: What tokenises: `processes` of this machine, or `ray` (extra `potstill[ray]`), the workers of a Ray
            cluster. RAY_ADDRESS names the cluster. Each file is one piece of work. The corpus is the same.

    Returns:
        The opened corpus.

    Raises:
        PotstillError: the options contradict each other, an input cannot be read or has a document of more than
            32 MiB, there is too little text for one block, or the corpus cannot be written. The output folder is then
            unchanged.
    """
    if not 0 <= validation_fraction < 1:
        raise PotstillError(
            f"--validation_fraction is {validation_fraction}: give a share that is at least 0 and below 1."
        )
    for option, value, kind in (
        ("sample_by", sample_by, SampleBy),
        ("on_bad_text", on_bad_text, OnBadText),
        ("unit", unit, Unit),
        ("engine", engine, Engine),
    ):
        if value not in get_args(kind):
            raise PotstillError(f"--{option} is {value!r}: give one of {', '.join(get_args(kind))}.")
    if num_proc is not None and num_proc < 1:
        raise PotstillError(f"--num_proc is {num_proc}: give 1 or more processes.")
    if language_exponent is not None and not 0 <= language_exponent <= 1:
        raise PotstillError(
            f"--language_exponent is {language_exponent}: give 0 (equal shares) to 1 (each language as it is)."
        )
    if language_exponent is not None and unit != "blocks":
        raise PotstillError(
            f"--language_exponent repeats texts, and --unit {unit} leaves out texts that occur again: leave one of "
            "them out."
        )
    if memory_limit_mb < 1:
        raise PotstillError(f"--memory_limit_mb is {memory_limit_mb}: give 1 or more.")
    if (tokenizer is None) != train_tokenizer:
        raise PotstillError("Give either --tokenizer, a folder or hub id, or --train_tokenizer, and not both.")
    if prune_vocabulary and train_tokenizer:
        raise PotstillError(
            "--prune_vocabulary cuts the vocabulary of a teacher, and --train_tokenizer makes a new one: leave one of "
            "them out, and choose the size of a new one with --vocab_size."
        )
    if unit != "blocks" and frame_blocks is False:
        raise PotstillError(
            f"--unit {unit} puts [CLS] before and [SEP] after each text: leave --frame_blocks False out."
        )
    if engine == "ray":
        for option, given in (
            ("--language_exponent", language_exponent is not None),
            ("--prune_vocabulary", prune_vocabulary),
            ("--train_tokenizer", train_tokenizer),
            ("--unit sentences", unit == "sentences"),
        ):
            if given:
                raise PotstillError(f"{option} does not go with --engine ray: leave one of them out.")
    if model_type is not None and not train_tokenizer:
        raise PotstillError(
            "--model_type decides the kind of tokenizer to train: add --train_tokenizer, or leave --model_type out."
        )
    new_tokenizer = _kind_of_tokenizer(model_type) if train_tokenizer else None

    def write() -> None:
        with claimed_folder(output_dir, overwrite_output_dir, FILE_NAME, "a corpus", break_lock) as claimed:
            folder = claimed.resolve()
            names = [text] if isinstance(text, str) else text
            sources = find_sources_of_each(names, folder)
            options = ReadingOptions(text_column, sample_by, dataset_config_name, dataset_split, on_bad_text)

            languages = None
            if language_exponent is not None:
                of_each = list(zip(names, sources, strict=True))
                languages = LanguageReader(of_each, options, language_exponent, seed)

            def new_reader() -> Reader:
                return languages or DocumentReader(list(chain.from_iterable(sources)), options)

            if new_tokenizer is not None:
                name = f"trained on this text ({vocab_size} entries)"
                loaded = new_tokenizer.train(
                    lambda: _training_documents(new_reader(), seed, validation_fraction),
                    vocab_size,
                    lowercase,
                    block_size,
                )
            elif isinstance(tokenizer, str):
                name, loaded = tokenizer, _load(tokenizer, unit)
            else:
                name, loaded = getattr(tokenizer, "name_or_path", ""), tokenizer
            spec = TokenizerSpec.of(loaded, name, frame_blocks)
            if content_size(spec, block_size) < 1:
                raise PotstillError(f"--block_size is {block_size}, so there is no room for text: give 3 or more.")

            reader = new_reader()
            used = UsedTokens(spec) if prune_vocabulary else None
            if used is not None:
                tokens_to_keep(loaded, [])  # raises an error now if the tokenizer cannot be cut
            limits = num_proc, memory_limit_mb, engine
            pad = None if unit == "blocks" else check_rows(spec, loaded, name)
            _write(folder, reader, loaded, name, spec, block_size, seed, validation_fraction, *limits, used, unit, pad)

    once("prepare a corpus", write)  # the first of a launcher's processes prepares the corpus for all
    return Corpus.open(Path(output_dir).expanduser().resolve(), verify=False)


def _write(
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

    If `used` is given, the vocabulary is cut to the tokens that it counts.
    """
    num_proc = num_proc or available_cpus()
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


def available_cpus() -> int:
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
        raise PotstillError(
            f"The text gives {train.tokens} tokens to train on, fewer than the {content} of one block: "
            "give more text or a smaller --block_size."
        )
    if validation.blocks == 0 and validation_fraction > 0:
        logger.warning(
            "No validation blocks: the %d held-out documents have %d tokens, fewer than the %d of one block; "
            "raise validation_fraction or give more text.",
            validation.documents,
            validation.tokens,
            content,
        )


def _load(name: str, unit: Unit) -> PreTrainedTokenizerFast:
    """Load a tokenizer. That of a sentence encoder may lie in a subfolder, and may have to lower-case texts."""
    folder = Path(name).expanduser()
    if unit == "blocks" or not (folder / "modules.json").is_file():
        return load_tokenizer(name)
    from potstill.sentences.encoder import load_encoder_tokenizer  # here, because it imports models

    return load_encoder_tokenizer(folder)


def _kind_of_tokenizer(model_type: str | None) -> "TokenizerKind":
    from potstill.student.family import new_tokenizer_kind  # here, because it imports models, which are seldom needed

    return new_tokenizer_kind(model_type)


def _training_documents(reader: Reader, seed: int, validation_fraction: float) -> Iterator[bytes]:
    """Yield the documents that are not held out: a vocabulary must not be trained on the validation split."""
    for first, documents in reader.passes():
        for number, document in enumerate(documents, first):
            if document and not is_held_out(number, seed, validation_fraction):
                yield document
