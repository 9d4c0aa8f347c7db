"""Reads the texts without labels that only a task teacher can teach (Hinton et al. 2015; Turc et al. 2019)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerFast

from potstill.corpus.sources import Source, find_sources
from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.predict import fingerprint
from potstill.tasks.in_memory import dataset_of
from potstill.tasks.own import OwnTask
from potstill.tasks.own_tables import TRAIN, open_table
from potstill.tasks.rows import BadRows, OnBadRows, print_message, text_fault, text_lines
from potstill.tasks.task import OwnFiles, Task
from potstill.wording import agreeing, counted

OPTION = "--unlabelled"

Texts = tuple[str, ...]
"""A text, or the two texts of a pair."""


@dataclass(frozen=True)
class Columns:
    """The columns of the texts.

    Attributes:
        text: usual names of the column of the text; one of them must be there.
        pair: the same for the second text of a pair; None for a task on single texts.
        given: whether the user named the columns.
        all: names of all columns of `.csv` and `.tsv` files whose first line does not name them.
    """

    text: tuple[str, ...]
    pair: tuple[str, ...] | None = None
    given: bool = False
    all: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Unlabelled:
    """Texts without labels.

    Attributes:
        rows: columns `text` and, for pairs, `pair`, or the column `tokens` of words; each text once, and none of the
            task's own.
        counts: what was found: `texts`, and those that were left out: `empty`, `duplicates`, `in_training_rows`,
            `in_scored_rows` and `bad`; and `synthetic`, if some of `texts` were made from labelled rows.
        mask: what stands in for a masked word in synthetic texts; None if there are none.
    """

    rows: datasets.Dataset
    counts: dict[str, int]
    mask: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def rows_for(self, tokenizer: PreTrainedTokenizerFast) -> datasets.Dataset:
        """Return the rows for a model, in whose texts its own token stands in for masked words."""
        before, own = self.mask, mask_of(tokenizer)
        if not before or before == own:
            return self.rows

        def read(batch: dict[str, list[str]]) -> dict[str, list[str]]:
            return {name: [text.replace(before, own) for text in texts] for name, texts in batch.items()}

        return self.rows.with_transform(read)

    def and_also(self, other: Unlabelled) -> Unlabelled:
        """Return these texts and those of another one, with the sums of their counts."""
        names = [*self.counts, *(name for name in other.counts if name not in self.counts)]
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
        return Unlabelled(datasets.concatenate_datasets([self.rows, other.rows]), counts, other.mask or self.mask)

    def record(self, drawn: int) -> dict[str, Any]:
        """Return what results say of the texts; `drawn` is the number that an epoch reads."""
        return self.counts | {"per_epoch": drawn, "fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the texts."""
        return fingerprint({"unlabelled": self.rows})


def mask_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what a model reads for a word that it is not to know: its mask, or its unknown word, or nothing."""
    return str(tokenizer.mask_token or tokenizer.unk_token or "")


def columns_of(args: FinetuneArguments, task: Task, pairs: bool) -> Columns:
    """Return the columns of the texts of a task: those that the user named, or the task's own and the usual ones.

    Args:
        args: the options of the run.
        task: the declaration of the task.
        pairs: whether its rows are pairs of texts.

    Raises:
        PotstillError: the user named another number of columns than the task has texts.
    """
    files = args.own_files if isinstance(task, OwnTask) else OwnFiles()
    if args.unlabelled_columns is not None:
        text, *pair = args.unlabelled_columns
        if len(pair) != pairs:
            needed = "the two texts of a pair" if pairs else "one text"
            raise PotstillError(f"{OPTION}_columns names {1 + len(pair)}: it must name the columns of {needed}.")
        return Columns((text,), tuple(pair) or None, True, files.columns)
    table = getattr(task, "hub", None)
    own = [files.text_column, getattr(table, "text", None)]
    second = [files.pair_column, getattr(table, "pair", None)]
    names, others = (tuple(dict.fromkeys(name for name in some if isinstance(name, str))) for some in (own, second))
    return Columns(
        (*names, "text", "sentence"), (*others, "pair", "sentence2") if pairs else None, False, files.columns
    )


def read_unlabelled(
    names: Sequence[str],
    columns: Columns,
    train: datasets.Dataset,
    dev: Iterable[datasets.Dataset],
    output_dir: str,
    on_bad_rows: OnBadRows = "stop",
) -> Unlabelled:
    """Read texts and leave out those that are empty, occur twice, or are in the task's own rows.

    Args:
        names: files, folders, patterns, or ids of datasets on the hub.
        columns: where the texts are. A line of a `.txt` file is a text.
        train: the labelled rows, with the column `text` and perhaps `pair`.
        dev: the rows that are scored.
        output_dir: a folder that is not read.
        on_bad_rows: `stop`: a row that cannot be read is an error; `skip`: it is left out and counted.

    Raises:
        PotstillError: a file cannot be read, its format is unknown, it has no such column, or no text is left.
    """
    bad = BadRows(on_bad_rows)
    sieve = Sieve(_own(train), (texts for split in dev for texts in _own(split)))
    sources = find_sources(list(names), Path(output_dir).resolve(), OPTION)
    kept = [
        texts
        for source in sources
        for texts in _texts(source, columns, bad)
        if sieve.keeps(tuple(text.strip() for text in texts))
    ]
    counts = sieve.report(sources, bad)
    every = zip(*kept, strict=True)
    return Unlabelled(dataset_of(dict(zip(("text", "pair"), map(list, every), strict=False))), counts)


class Sieve:
    """Leaves out texts that are empty, occur twice, or are among the task's own rows, and counts them.

    It keeps a hash of 16 bytes of each text, so that millions of texts fit into memory.

    Args:
        train: the labelled rows.
        dev: the rows that are scored.
    """

    def __init__(self, train: Iterable[Texts], dev: Iterable[Texts]) -> None:
        self._in_dev, self._in_train = set(map(_hash, dev)), set(map(_hash, train))
        self._kept: set[bytes] = set()
        self._left_out = dict.fromkeys(("empty", "duplicates", "in_training_rows", "in_scored_rows"), 0)

    def keeps(self, texts: Texts) -> bool:
        """Return whether a text, or a pair of texts, is to be kept, and count it."""
        key = _hash(texts)
        if not all(texts):
            reason = "empty"
        elif key in self._in_dev:
            reason = "in_scored_rows"
        elif key in self._in_train:
            reason = "in_training_rows"
        elif key in self._kept:
            reason = "duplicates"
        else:
            self._kept.add(key)
            return True
        self._left_out[reason] += 1
        return False

    def __len__(self) -> int:
        return len(self._kept)

    def report(self, sources: Sequence[Source], bad: BadRows) -> dict[str, int]:
        """Print how many texts there are and how many are left out, and return these counts.

        Raises:
            PotstillError: no text is left.
        """
        counts = {"texts": len(self._kept), **self._left_out, "bad": bad.count}
        words = {
            "empty": ("is empty", "are empty"),
            "duplicates": ("occurs twice", "occur twice"),
            "in_training_rows": ("is a training row", "are training rows"),
            "in_scored_rows": ("is a scored row", "are scored rows"),
            "bad": ("cannot be read", "cannot be read"),
        }
        left_out = ", ".join(
            f"{counts[name]:,} {agreeing(counts[name], *what)}" for name, what in words.items() if counts[name]
        )
        where = sources[0].name if len(sources) == 1 else f"{len(sources):,} files"
        if not self._kept:
            reason = f"of its texts {left_out}" if left_out else "it is empty"
            raise PotstillError(f"{OPTION}: no text is left of {where}, because {reason}: give other texts.")
        more = f"; left out: {left_out}" if left_out else ""
        print_message(f"{counted(len(self._kept), 'unlabelled text')} from {where}{more}.")
        return counts


def _hash(texts: Texts) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()


def _own(split: datasets.Dataset) -> Iterator[Texts]:
    names = [name for name in ("text", "pair") if name in split.column_names]
    columns = [split[name][:] for name in names]
    return (tuple(text.strip() for text in texts) for texts in zip(*columns, strict=True))


def _texts(source: Source, columns: Columns, bad: BadRows) -> Iterator[Texts]:
    """Yield the texts of a source; a value that is missing is an empty text."""
    if source.kind == "text":
        if columns.pair is not None:
            raise PotstillError(
                f"{source.name}: a line of a .txt file is one text, but the task is on pairs: give a table with the "
                f"columns {columns.text[0]} and {columns.pair[0]}."
            )
        for _, line in text_lines(source.name, bad):
            yield (line,)
        return
    table = open_table(source.name, TRAIN, columns.all if source.kind == "fields" else None, bad)
    wanted = [columns.text, *([columns.pair] if columns.pair is not None else [])]
    found = [table.column(names[0] if columns.given else None, names, f"{OPTION}_columns") for names in wanted]
    for number, row in table.rows:
        values = [row.get(column) for column in found]
        texts = tuple("" if value is None else value for value in values)
        fault = next((fault for text in texts if (fault := text_fault(text, "a text")) is not None), None)
        if fault is not None:
            bad.add(f"{table.where}, {table.unit} {number}: {fault}")
        else:
            yield texts
