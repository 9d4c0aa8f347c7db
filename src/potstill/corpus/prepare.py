"""The verb `prepare`: turn documents into token blocks of one length."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from transformers import PreTrainedTokenizerFast

from potstill.corpus.blocks import Corpus
from potstill.corpus.languages import LanguageReader
from potstill.corpus.manifest import FILE_NAME
from potstill.corpus.packing import content_size
from potstill.corpus.pruning import UsedTokens
from potstill.corpus.reading import DocumentReader, OnBadText, ReadingOptions, SampleBy
from potstill.corpus.sources import find_sources_of_each
from potstill.corpus.text_rows import check_rows
from potstill.corpus.tokenizer import TokenizerSpec, load_tokenizer
from potstill.corpus.tokenizer_pruning import tokens_to_keep
from potstill.corpus.worker import is_held_out
from potstill.corpus.writing import Engine, Reader, Unit, write_corpus
from potstill.errors import PotstillError
from potstill.files import claimed_folder
from potstill.live_line import say
from potstill.processes import once

if TYPE_CHECKING:
    from potstill.student.interface import TokenizerKind


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
            most = loaded.model_max_length
            if unit == "blocks" and block_size > most:
                say(
                    f"The tokenizer says that the model of {name} reads {most} tokens, and a block has {block_size}. "
                    f"If that is right, it cannot be a teacher on these blocks: give --block_size {most}."
                )

            reader = new_reader()
            used = UsedTokens(spec) if prune_vocabulary else None
            if used is not None:
                tokens_to_keep(loaded, [])  # raises an error now if the tokenizer cannot be cut
            pad = None if unit == "blocks" else check_rows(spec, loaded, name)
            write_corpus(
                folder,
                reader,
                loaded,
                name,
                spec,
                block_size,
                seed,
                validation_fraction,
                num_proc,
                memory_limit_mb,
                engine,
                used,
                unit,
                pad,
            )

    once("prepare a corpus", write)  # the first of a launcher's processes prepares the corpus for all
    return Corpus.open(Path(output_dir).expanduser().resolve(), verify=False)


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
