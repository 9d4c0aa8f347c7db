"""Read sentences with a tag for each word: CoNLL's columns, CoNLL-U, or rows with lists of words and of tags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.corpus.lines import decoded_lines, open_hashed
from potstill.corpus.sources import compression_of
from potstill.errors import PotstillError
from potstill.tasks.rows import BadRows, NumberedRow, text_fault
from potstill.wording import counted

TAGS = ("ner_tags", "pos_tags", "tags", "labels")
"""Names of the column of tags in data sets."""

UNUSED = {"id", "idx"}

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U (https://universaldependencies.org/format.html)."""


_NO_WORD = re.compile(r"\d+-\d+|\d+\.\d+")
"""The number of a multi-word token, such as 3-4, or of an empty node, such as 3.1, in CoNLL-U."""


@dataclass(frozen=True)
class Tagged:
    """A sentence as it stands in a file.

    Attributes:
        words: of the sentence.
        tags: names or numbers, one for each word.
        places: where each word stands in the file, for messages.
    """

    words: list[str]
    tags: list[Any]
    places: Sequence[str]


def is_conllu(path: str) -> bool:
    """Return whether a file has the columns of CoNLL-U, by its ending."""
    return path.lower().removesuffix(compression_of(path) or "").endswith(".conllu")


def conll_sentences(
    path: str,
    bad: BadRows,
    tag: str | None = None,
    word: str | None = None,
    columns: Sequence[str] | None = None,
    tagged: bool = True,
) -> Iterator[Tagged]:
    """Yield the sentences of a file with one word on each line and an empty line after each sentence.

    Tabs separate the columns, or blanks if there are no tabs. A line that begins with -DOCSTART- ends a sentence.

    Of CoNLL-U, comments, multi-word tokens (3-4) and empty nodes (3.1) are left out: the words of a treebank are what
    its tags are for, and what Universal Dependencies' scores count. Its words must be numbered from 1 in each sentence,
    so that a blank line that is lost does not join two sentences.

    Args:
        path: the file.
        bad: takes the sentences that cannot be used.
        tag: the column of the tags, by its name; if None, the last one, and `upos` of CoNLL-U.
        word: the column of the words, by its name; if None, the first one, and `form` of CoNLL-U.
        columns: names of the columns.
        tagged: whether to read tags. Without them each tag is None, and the file may have words alone.

    Raises:
        PotstillError: the file cannot be read; it has no such column; or a line has more or fewer columns than the
            first, or is no line of CoNLL-U, and `bad` does not take its sentence.
    """
    conllu = is_conllu(path)
    if conllu and columns is not None:
        raise PotstillError(f"{path} has the columns of CoNLL-U: leave --columns out.")
    names = CONLLU if conllu else None if columns is None else tuple(columns)
    tag, word = tag or ("upos" if conllu else None), word or ("form" if conllu else None)
    tag = tag if tagged else None
    places = [_place(path, name, names, option) for name, option in ((word, "--text_column"), (tag, "--label_column"))]
    word_at, tag_at = (default if place is None else place for place, default in zip(places, (0, -1), strict=True))
    expected = None if names is None else len(names)
    words: list[str] = []
    tags: list[Any] = []
    lines: list[str] = []
    fault = ""

    def sentence() -> Iterator[Tagged]:
        nonlocal fault
        if fault:  # a sentence cannot be used without one of its words
            bad.add(fault)
        elif words:
            yield Tagged([*words], [*tags], [*lines])
        fault = ""
        for column in (words, tags, lines):
            column.clear()

    with open_hashed(path) as content:
        for number, line in decoded_lines(path, content):
            where = f"{path}, line {number}"
            if isinstance(line, UnicodeDecodeError):
                fault = fault or f"{where}, is not UTF-8: {line.reason}"
                continue
            if not line.strip() or line.startswith("-DOCSTART-"):
                yield from sentence()
                continue
            if conllu and line.startswith("#"):
                continue
            # A word may hold a blank if tabs separate the columns, and it may always hold a no-break space.
            within = line.strip(" \t")
            tabs = conllu or "\t" in within
            fields = [field.strip(" ") for field in (within.split("\t") if tabs else re.split(" +", within))]
            if not conllu and (len(fields) < 1 + tagged or not fields[0]):
                fault = fault or f"{where}, does not have {'both a word and its tag' if tagged else 'a word'}"
                continue
            expected = expected or len(fields)
            if len(fields) != expected:
                fault = fault or f"{where}, has {counted(len(fields), 'column')} instead of {expected}"
                continue
            if conllu and _NO_WORD.fullmatch(fields[0]):
                continue
            if conllu and fields[0] != str(len(words) + 1) and not fault:
                fault = f"{where}, has the number {fields[0]!r}, where word {len(words) + 1} of the sentence should be"
            if tag == "upos" and conllu and fields[tag_at] == "_":
                fault = fault or f"{where}, has no part of speech (upos is _)"
            words.append(fields[word_at])
            tags.append(fields[tag_at] if tagged else None)
            lines.append(where)
    yield from sentence()


def _place(path: str, name: str | None, names: Sequence[str] | None, option: str) -> int | None:
    if name is None:
        return None
    if names is None:
        raise PotstillError(f"The columns of {path} have no names, so {option} {name} needs --columns to name them.")
    if name not in names:
        raise PotstillError(f"{path} has no column {name!r}, only {', '.join(names)}: name another with {option}.")
    return names.index(name)


def row_sentences(
    path: str, rows: Sequence[NumberedRow], words_column: str, tags_column: str | None, bad: BadRows
) -> list[Tagged]:
    """Return the sentences in rows that have a list of words and a list of tags.

    Args:
        path: the file, for messages.
        rows: its rows.
        words_column: the column of the words.
        tags_column: the column of the tags; None if the file has none.
        bad: takes the rows that cannot be used.

    Raises:
        PotstillError: a row cannot be used and `bad` does not take it.
    """
    found = []
    for number, row in rows:
        where = f"{path}, row {number}"
        words, tags = row.get(words_column), row.get(tags_column)
        if not isinstance(words, list) or not isinstance(tags, list):
            lists = f"a list {words_column!r} and a list of tags: {tags_column or ', '.join(TAGS)}"
            bad.add(f"{where}, does not have both {lists}")
            continue
        words, fault = listed_words(words)
        if fault is not None:
            bad.add(f"{where}: {fault}")
        elif not words or len(words) != len(tags):
            bad.add(f"{where}, has {counted(len(words), 'word')} and {counted(len(tags), 'tag')}: give one for each")
        else:
            found.append(Tagged(words, tags, [where] * len(words)))
    return found


def listed_words(words: Sequence[Any]) -> tuple[list[str], str | None]:
    """Return the words of a list, in which whole numbers are words too, and what is wrong with the first bad one."""
    found = [str(word) if isinstance(word, int) and not isinstance(word, bool) else word for word in words]
    return found, next((fault for word in found if (fault := text_fault(word, "a word")) is not None), None)
