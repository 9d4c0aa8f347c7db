"""Read tagged sentences from a user's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from potstill.errors import PotstillError
from potstill.tasks.entities import OUTSIDE, Scheme
from potstill.tasks.in_memory import dataset_of
from potstill.tasks.labels import in_words
from potstill.tasks.own_labels import collect, some, tell_counts, written
from potstill.tasks.own_rows import OwnRows
from potstill.tasks.own_tables import (
    DEV,
    TABLES,
    TRAIN,
    all_of,
    check_file,
    open_table,
    sources_by_split,
    sources_of,
    split_names,
)
from potstill.tasks.rows import PACKED, BadRows, OnBadRows, print_message, report_unread
from potstill.tasks.stratified import stratified
from potstill.tasks.tagged import TAGS, UNUSED, Tagged, conll_sentences, row_sentences
from potstill.tasks.task import OwnFiles
from potstill.wording import agreeing, counted

WORDS = ("tokens", "words")
KINDS = (".conll", ".conllu", ".tsv", ".txt", ".bio", ".iob", ".iob2", ".bioes", ".ner", ".pos")
CONLL = tuple(kind + packed for kind in KINDS for packed in PACKED)
"""Endings of files with a word on each line."""

ROWS = tuple(ending for ending in TABLES if not ending.startswith((".csv", ".tsv")))
"""Endings of files with lists of words and tags."""


def read_own_tags(files: OwnFiles, on_bad_rows: OnBadRows = "stop") -> OwnRows:
    """Read the files of a task that tags words.

    Tags in the scheme IOB1 become IOB2, in which every entity begins with B. All others stay as they are.

    Args:
        files: the files and their columns. Without a file to score, a part of the sentences to train on is held out.
        on_bad_rows: `stop`: sentences that cannot be used are an error; `skip`: they are left out and counted.

    Returns:
        The tags, and splits with the columns `tokens` and `tags`.

    Raises:
        PotstillError: a file cannot be read or has no such column, or a sentence cannot be used.
    """
    sources = sources_by_split(files)
    where = all_of(sources[TRAIN])
    sentences: dict[str, list[Tagged]] = {}
    bad_rows: dict[str, int] = {}
    for name, of_split in sources.items():
        sentences[name], bad_rows[name] = [], 0
        for source in of_split:
            bad = BadRows(on_bad_rows)
            found = _read(files, TRAIN if name == TRAIN else DEV, source, bad)
            if name != TRAIN:
                found = _with_known(found, {tag for one in sentences[TRAIN] for tag in one.tags}, where, bad)
            bad.report(source, len(found))
            if not found:
                raise PotstillError(f"{source} holds no sentence: check that it is the right file.")
            sentences[name] += found
            bad_rows[name] += bad.count
    tags = {tag: written(tag) for one in sentences[TRAIN] for tag in one.tags}
    names = collect([tag for tag in tags.values() if tag is not None], where, typed=True)
    tell_counts(Counter(names.index(tag) for one in sentences[TRAIN] for tag in one.tags), names, where)
    if len(sources) == 1:
        every = sentences[TRAIN]
        held_out = {*stratified([0] * len(every), files.dev_share)}
        if not held_out:
            raise PotstillError(
                f"{where} has {counted(len(every), 'sentence')}, too few to hold out a part: give --eval_data."
            )
        print_message(
            f"{where}: {len(held_out):,} of {len(every):,} sentences {agreeing(len(held_out), 'is', 'are')} held out "
            "and scored (at random; the same for every seed)."
        )
        sentences[DEV] = [one for place, one in enumerate(every) if place in held_out]
        sentences[TRAIN] = [one for place, one in enumerate(every) if place not in held_out]
        bad_rows[DEV] = 0
    return OwnRows(names, {name: _dataset(found, names) for name, found in sentences.items()}, bad_rows)


def read_scored_tags(files: OwnFiles, names: Sequence[str], on_bad_rows: OnBadRows = "stop") -> OwnRows:
    """Read the sentences to score of a task whose tags the teacher tells; there are none to train on.

    Args:
        files: the files and their columns.
        names: names of the tags, in order.
        on_bad_rows: see `read_own_tags`.
    """
    sources = sources_of(files.eval or (), "--eval_data")
    splits, bad_rows = {TRAIN: _dataset([], names)}, {TRAIN: 0}
    for name, source in zip(split_names(sources), sources, strict=True):
        bad = BadRows(on_bad_rows)
        splits[name] = read_tagged_file(files, source, names, bad, "the teacher")
        bad_rows[name] = bad.count
    return OwnRows(tuple(names), splits, bad_rows)


def read_tagged_file(
    files: OwnFiles, source: str, names: Sequence[str], bad: BadRows, owner: str = "the model"
) -> datasets.Dataset:
    """Read one file of sentences to score, with the tags that a model has; see `read_own_tags`.

    Args:
        files: the columns.
        source: the file.
        names: names of the model's tags, in order.
        bad: takes the sentences that cannot be used.
        owner: the word for the model in messages.
    """
    sentences = _with_known(_read(files, DEV, source, bad), set(names), owner, bad)
    bad.report(source, len(sentences))
    if not sentences:
        raise PotstillError(f"{source} holds no sentence: check that it is the right file.")
    return _dataset(sentences, tuple(names))


def _read(files: OwnFiles, split: str, source: str, bad: BadRows) -> list[Tagged]:
    path = Path(source).expanduser()
    lines = path.name.lower().endswith(CONLL) and not path.is_dir()
    if lines:
        check_file(path, CONLL, "tagged sentences", ".conll, .conllu, .txt, .tsv, .jsonl, .json or .parquet")
        found = list(conll_sentences(str(path), bad, files.label_column, files.text_column, files.columns))
    else:
        if path.exists() and not path.is_dir():
            check_file(path, ROWS, "tagged sentences", ".conll, .conllu, .txt, .tsv, .jsonl, .json or .parquet")
        table = open_table(source, split, files.columns, bad)
        words = table.column(files.text_column, WORDS, "--text_column")
        several = [] if files.label_column else [column for column in TAGS if column in table.columns]
        if len(several) > 1:
            raise PotstillError(f"{table.where} has the columns {' and '.join(several)}: choose with --label_column.")
        tags = table.column(files.label_column, several or TAGS, "--label_column")
        report_unread(table.where, table.columns, {words, tags, *UNUSED})
        if tags in table.classes:
            in_words(table.rows, tags, table.classes[tags])
        found = row_sentences(table.where, table.rows, words, tags, bad)
    kept = []
    for one in found:
        labels = [written(tag) for tag in one.tags]
        if None in labels:
            place = labels.index(None)
            bad.add(f"{one.places[place]}, has the tag {one.tags[place]!r}, which is neither a name nor a number")
        else:
            kept.append(Tagged(one.words, [label.name for label in labels if label is not None], one.places))
    return _begun(kept, source)


def _begun(sentences: list[Tagged], where: str) -> list[Tagged]:
    """Turn tags of the scheme IOB1 into IOB2, and say so."""
    names = {tag for one in sentences for tag in one.tags}
    scheme = Scheme.of(names)
    if scheme is None or not all(name == OUTSIDE or name.startswith(("B-", "I-")) for name in names):
        return sentences
    found, changed = [], 0
    for one in sentences:
        tags = [OUTSIDE] * len(one.tags)
        for begin, end, kind in scheme.entities(one.tags):
            tags[begin:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 1)]
        changed += tags != one.tags
        found.append(Tagged(one.words, tags, one.places))
    if changed:
        print_message(
            f"{where}: entities begin with I- in {changed:,} of {counted(len(sentences), 'sentence')}, as in IOB1: "
            "they now begin with B-."
        )
    return found


def _with_known(sentences: list[Tagged], known: set[str], by: str, bad: BadRows) -> list[Tagged]:
    """Keep the sentences whose tags are known; the others cannot be used."""
    unknown = sorted({tag for one in sentences for tag in one.tags} - known)
    if not unknown:
        return sentences
    kept = [one for one in sentences if known.issuperset(one.tags)]
    first = next(one for one in sentences if not known.issuperset(one.tags))
    place = next(place for place, tag in enumerate(first.tags) if tag not in known)
    count = len(sentences) - len(kept)
    bad.add(
        f"{first.places[place]}, has the tag {first.tags[place]!r}; {by} does not have {some(unknown)} ("
        f"{counted(count, 'sentence')})",
        count,
    )
    return kept


def _dataset(sentences: Sequence[Tagged], names: Sequence[str]) -> datasets.Dataset:
    number = {name: place for place, name in enumerate(names)}
    columns: dict[str, Any] = {
        "tokens": [one.words for one in sentences],
        "tags": [[number[tag] for tag in one.tags] for one in sentences],
    }
    kinds = {"tokens": datasets.Value("string"), "tags": datasets.Value("int32")}
    features = datasets.Features({name: datasets.List(kind) for name, kind in kinds.items()})
    return dataset_of(columns, features=features)
