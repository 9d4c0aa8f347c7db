"""Reads the words without tags that only a task teacher can teach (Tsai et al. 2019): files of words, or plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.fingerprint import generate_random_fingerprint
from tokenizers import Regex, pre_tokenizers

from potstill.corpus.fields import delimiter_of, is_quoted
from potstill.corpus.lines import unreadable
from potstill.corpus.sources import FileKind, Source, find_sources
from potstill.corpus.tables import dataset_values, open_dataset, parquet_values
from potstill.corpus.worker import sentences_of
from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.unlabelled import OPTION, Sieve, Unlabelled
from potstill.live_line import LiveLine
from potstill.tasks.own_rows import TEXTS
from potstill.tasks.own_tables import TRAIN, OwnTable, open_table
from potstill.tasks.own_tags import KINDS, WORDS
from potstill.tasks.rows import BadRows, NumberedRow, csv_rows, json_rows, text_fault, text_lines
from potstill.tasks.tagged import conll_sentences, listed_words
from potstill.tasks.task import OwnFiles

FORMATS: dict[str, FileKind] = dict.fromkeys((kind for kind in KINDS if kind != ".txt"), "words")
"""Endings of files with a word on each line. A `.txt` file is plain text here."""

SENTENCES_AT_A_TIME = 2_000
"""Sentences that become a block of the table together."""

LINES_LOOKED_AT = 20

_LETTER = r"[\p{L}\p{M}\p{N}_&&[^\p{Han}]]"
WORD = rf"\p{{Han}}|{_LETTER}+(?:[-.,'’]{_LETTER}+)*|[^\s\p{{L}}\p{{M}}\p{{N}}\p{{C}}_]"
"""A Chinese character; letters, digits and marks, with a hyphen, full stop, comma or apostrophe between two of them; or
any other character that is seen."""

_SPLITTER = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)


def words_of(text: str) -> list[str]:
    """Split a text into words and punctuation marks: see `WORD`.

    A word is what stands between blanks, without the punctuation around it. Each mark is a word of its own, and so is
    each Chinese character. An apostrophe, a hyphen, a full stop or a comma within a word does not divide it: `don't`,
    `3.5`. Languages that write no blanks, but for Chinese, need another tool.
    """
    return [word for word, _ in _SPLITTER.pre_tokenize_str(text)]


def read_unlabelled_words(
    args: FinetuneArguments, train: datasets.Dataset, dev: Iterable[datasets.Dataset]
) -> Unlabelled:
    """Read sentences, and leave out those that are empty, occur twice, or are in the task's own rows.

    Sentences are equal if they have the same characters but for blanks, however these are divided into words. They are
    kept in a table of Arrow, which takes about as many bytes as the text.

    Args:
        args: the options of the run: `unlabelled` are files, folders, patterns, or ids of datasets on the hub.
        train: the tagged sentences, with the column `tokens`.
        dev: the sentences that are scored.

    Raises:
        PotstillError: a file cannot be read, its format is unknown, it has no such column, a `.txt` file has a word on
            each line, or no sentence is left.
    """
    bad, files = BadRows(args.on_bad_rows), args.own_files
    column = None
    if args.unlabelled_columns is not None:
        if len(args.unlabelled_columns) != 1:
            raise PotstillError(
                f"{OPTION}_columns names {len(args.unlabelled_columns)}: it must name the column of the words or texts."
            )
        (column,) = args.unlabelled_columns
    sieve = Sieve(_own([train]), _own(dev))
    given = [args.unlabelled] if isinstance(args.unlabelled, str) else args.unlabelled or []
    sources = find_sources(list(given), Path(args.output_dir or "").resolve(), OPTION, FORMATS)
    every = chain.from_iterable(_sentences(source, files, column, bad) for source in sources)
    kept = (words for words in _with_progress(every, sieve) if sieve.keeps(("".join(words),)))
    blocks = []
    while block := list(islice(kept, SENTENCES_AT_A_TIME)):
        blocks.append(pa.table({"tokens": pa.array(block, pa.list_(pa.string()))}))
    counts = sieve.report(sources, bad)
    # A fingerprint that is not given would be computed from a second copy of the table.
    return Unlabelled(datasets.Dataset(pa.concat_tables(blocks), fingerprint=generate_random_fingerprint()), counts)


def _own(splits: Iterable[datasets.Dataset]) -> Iterator[tuple[str]]:
    for split in splits:
        for start in range(0, len(split), SENTENCES_AT_A_TIME):
            for words in split[start : start + SENTENCES_AT_A_TIME]["tokens"]:
                yield ("".join(words),)


def _with_progress(sentences: Iterable[list[str]], sieve: Sieve) -> Iterator[list[str]]:
    with LiveLine() as progress:
        for number, words in enumerate(sentences, 1):
            yield words
            if number % 1000 == 0:
                progress.update(None, [f"reading {OPTION}: {number:,} sentences", f"{len(sieve):,} kept"])


def _sentences(source: Source, files: OwnFiles, column: str | None, bad: BadRows) -> Iterator[list[str]]:
    """Yield the words of each sentence of a source; one that is missing or blank has none."""
    if source.kind == "words":
        columns = (files.text_column, files.columns)
        yield from (one.words for one in conll_sentences(source.name, bad, None, *columns, tagged=False))
        return
    if source.kind == "text":
        for line in _lines(source.name, bad):
            yield from map(words_of, sentences_of(line))
        return
    for number, value in _values(source, files, column, bad):
        where = f"{source.name}, row {number}"
        if value is None:
            yield []
        elif isinstance(value, list):
            words, fault = listed_words(value)
            if fault is None:
                yield [word for word in words if word.strip()]
            else:
                bad.add(f"{where}: {fault}")
        elif (fault := text_fault(value, "a list of words, or a text,")) is not None:
            bad.add(f"{where}: {fault}")
        else:
            yield from map(words_of, sentences_of(value)) if value.strip() else ([],)


def _lines(path: str, bad: BadRows) -> Iterator[str]:
    """Yield the lines of a file of plain text.

    Raises:
        PotstillError: its lines are the words of sentences.
    """
    lines = text_lines(path, bad)
    first = list(islice(((number, line) for number, line in lines), LINES_LOOKED_AT))
    written = [line for _, line in first if line.strip()]
    fields = {len(line.split()) for line in written}
    columns = len(fields) == 1 and 2 <= min(fields) <= 10
    if len(written) >= 5 and (columns or all(len(words_of(line)) == 1 for line in written)):
        raise PotstillError(
            f"{path} seems to have a word on each line, but a line of a .txt file is a text: give the file the ending "
            ".conll if it has words and perhaps tags."
        )
    yield from (line for _, line in chain(first, lines))


def _values(source: Source, files: OwnFiles, column: str | None, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row, and its list of words or its text."""
    usual = tuple(name for name in (files.text_column, *WORDS, *TEXTS) if name is not None)

    def chosen(table: OwnTable) -> str:
        return table.column(column, usual, f"{OPTION}_columns")

    if source.kind == "parquet":
        try:
            names = pq.read_schema(source.name).names
        except (pa.ArrowException, OSError, ValueError) as error:
            raise unreadable(source.name, error) from error
        yield from parquet_values(source.name, chosen(OwnTable(source.name, [(0, dict.fromkeys(names))], True, {})))
        return
    if source.kind == "dataset":
        dataset = open_dataset(source.name, TRAIN)
        table = OwnTable(source.name, [(0, dict.fromkeys(dataset.column_names))], True, {})
        yield from dataset_values(source.name, dataset, chosen(table))
        return
    if source.kind == "hub":
        table = open_table(source.name, TRAIN, None, bad)
        name = chosen(table)
        yield from ((number, row.get(name)) for number, row in table.rows)
        return
    rows: Iterator[NumberedRow]
    delimiter = delimiter_of(source.name)
    if delimiter is None:
        rows = json_rows(source.name, bad)
    else:
        rows = csv_rows(source.name, bad, files.columns, delimiter, is_quoted(source.name))
    name = ""
    for number, row in rows:
        name = name or chosen(OwnTable(source.name, [(number, row)], delimiter is None, {}))
        yield number, row.get(name)
