"""What `bench train` needs to measure the training of a sentence encoder: its options, and blocks of whole texts."""

from __future__ import annotations

from pathlib import Path

from potstill.bench.synthetic import random_corpus
from potstill.bench.train_arguments import BenchTrainArguments
from potstill.corpus import Corpus, Manifest
from potstill.errors import PotstillError
from potstill.objective import OF_DISTILBERT
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.folder import MODULES
from potstill.sentences.step import RowFormat


def is_for_sentences(args: BenchTrainArguments) -> bool:
    """Return whether a sentence encoder is to be measured: the corpus holds whole texts, or the teacher is one."""
    if args.corpus:
        return Manifest.load(Path(args.corpus).expanduser()).unit != "blocks"
    return any((Path(name).expanduser() / MODULES).is_file() for name in args.teachers)


def check_bench_options(args: BenchTrainArguments) -> None:
    """Check that no option is given that the measurement of a sentence encoder would ignore.

    Raises:
        PotstillError: one is, or the teacher is missing.
    """
    if not args.teachers:
        raise PotstillError(
            f"--teacher is missing: the corpus {args.corpus} holds whole texts, so name the sentence encoder to learn "
            "from."
        )
    language = (*OF_DISTILBERT, "dropout", "fp8")
    given = [name for name in language if getattr(args, name) != getattr(type(args), name)]
    given += [name for name in ("baseline", "pretrain") if getattr(args, name)]
    if given:
        raise PotstillError(
            f"--{given[0]} is for language models, but the teacher is a sentence encoder: leave it out."
        )


def given_corpus(name: str, size: int) -> Corpus:
    """Open a corpus that has enough blocks for one batch.

    Args:
        name: its folder.
        size: blocks of a batch.

    Raises:
        PotstillError: it has too few blocks, or it cannot be opened.
    """
    corpus = Corpus.open(name)
    if len(corpus.train) < size:
        raise PotstillError(
            f"The corpus {name} has fewer blocks than the {size} of one batch: lower --per_device_train_batch_size, "
            "or prepare more text."
        )
    return corpus


def sentence_corpus(args: BenchTrainArguments, folder: Path) -> Corpus:
    """Open the given corpus, or write one of random texts that is large enough for all steps.

    Raises:
        PotstillError: the corpus is too small for a batch, or the teacher's tokenizer cannot frame texts.
    """
    size = args.per_device_train_batch_size
    if args.corpus:
        return given_corpus(args.corpus, size)
    teacher = SentenceEncoder.load(args.teachers[0])
    blocks = size * args.gradient_accumulation_steps * args.world_size * (args.max_steps + 2)
    length = min(args.block_size, teacher.max_length)
    return random_corpus(folder / "blocks", blocks, length, teacher.tokenizer, args.seed, texts=True)


def padding_of(corpus: Corpus, rows: RowFormat) -> float:
    """Return the share of the tokens of the training split that is padding."""
    tokens = sum(len(ids) for ids in corpus.train.pieces())
    return sum(int((ids == rows.padding).sum()) for ids in corpus.train.pieces()) / tokens
