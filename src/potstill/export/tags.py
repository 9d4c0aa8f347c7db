"""Sentences with a tag for each word: reads them, makes a model's inputs of them, and scores the tags it finds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.corpus.lines import decoded_lines, open_hashed
from potstill.errors import PotstillError
from potstill.export.source import Arrays, Source
from potstill.tasks.entities import Scheme, entity_f1
from potstill.tasks.labels import ClassNames, canonical, in_words, match_names
from potstill.tasks.rows import BadRows, columns_of, named_classes, report_unread, rows_of, text_fault

TAGS = ("ner_tags", "pos_tags", "tags", "labels")
"""Names of the column of tags in data sets."""

UNUSED = {"id", "idx"}

Sentence = tuple[list[str], list[int]]
"""The words, and the number of each word's tag."""


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


def read_tagged(path: str, names: Mapping[int, str], bad: BadRows | None = None) -> list[Sentence]:
    """Read a `.jsonl` or `.parquet` file with a list `tokens` and a list of tags, or a file in CoNLL's format.

    Args:
        path: the file. In `.jsonl` and `.parquet` the tags are in `ner_tags`, `pos_tags`, `tags` or `labels`. They are
            names or numbers of the model's tags, or numbers of names that a parquet file gives. A file with any other
            ending has one word on each line, with its tag in the last column, and an empty line after each sentence.
            Tabs separate the columns, or blanks if there are no tabs.
        names: number of a tag → its name, of the model.
        bad: collects the sentences that cannot be used; if None, the first one is an error.

    Raises:
        PotstillError: there is no such file, a row does not have that form, or the model does not have its tag.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise PotstillError(f"There is no file {path}: name a file of tagged sentences (.jsonl, .parquet or CoNLL's).")
    bad = bad or BadRows()
    classes = ClassNames(tuple(names[number] for number in sorted(names)))
    typed = bool({".jsonl", ".parquet"} & {*file.suffixes[-2:]})
    tagged = _table(file, classes, bad) if typed else list(_conll(file, bad))
    known = classes.as_written((tag for sentence in tagged for tag in sentence.tags), typed, str(file))
    sentences = []
    for sentence in tagged:
        numbers = [known.get(canonical(tag)) for tag in sentence.tags]
        if None in numbers:
            wrong = numbers.index(None)
            what = f"has the tag {sentence.tags[wrong]!r}; the model has {', '.join(classes.names)}"
            bad.add(f"{sentence.places[wrong]}, {what}")
        else:
            sentences.append((sentence.words, [number for number in numbers if number is not None]))
    bad.report(str(file), len(sentences))
    if not sentences:
        raise PotstillError(f"{path} holds no sentence.")
    return sentences


def tag_batches(source: Source, sentences: list[list[str]]) -> tuple[list[Arrays], list[dict[int, int]]]:
    """Return the model's inputs for each sentence, and for each, number of a word → place of its first token.

    A word has no place if it lies beyond the model's length, or if the tokenizer makes no token of it.
    """
    rows, places = [], []
    for words in sentences:
        encoded = source.tokenizer(words, is_split_into_words=True, truncation=True, max_length=source.max_length)
        ids = np.asarray(encoded["input_ids"], np.int64)
        zeros = np.zeros_like(ids)
        rows.append({name: np.asarray(encoded.get(name, zeros), np.int64) for name in source.inputs})
        of_word = encoded.word_ids()
        places.append({n: of_word.index(n) for n in range(len(words)) if n in of_word})
    return rows, places


def tag_scores(
    logits: Sequence[Any], places: Sequence[Mapping[int, int]], tags: Sequence[list[int]], names: Mapping[int, str]
) -> dict[str, float]:
    """Return the accuracy over words, and the F1 of entities if the tags mark them (see `Scheme`), in percent."""
    right = words = 0
    found, wanted = [], []
    for row, at, numbers in zip(logits, places, tags, strict=True):
        guessed, numbers = row[list(at.values())].argmax(axis=-1).tolist(), [numbers[word] for word in at]
        right += sum(guess == number for guess, number in zip(guessed, numbers, strict=True))
        words += len(at)
        found.append([names[number] for number in guessed])
        wanted.append([names[number] for number in numbers])
    accuracy = 100 * right / max(words, 1)
    scheme = Scheme.of(names.values())
    if scheme is None:
        return {"accuracy": accuracy, "score": accuracy}
    f1 = entity_f1(scheme, found, wanted)
    return {"accuracy": accuracy, "f1": f1, "score": f1}


def _conll(file: Path, bad: BadRows) -> Iterator[Tagged]:
    words: list[str] = []
    tags: list[Any] = []
    places: list[str] = []
    fault = ""

    def sentence() -> Iterator[Tagged]:
        nonlocal fault
        if fault:  # a sentence cannot be used without one of its words
            bad.add(fault)
        elif words:
            yield Tagged([*words], [*tags], [*places])
        fault = ""
        for column in (words, tags, places):
            column.clear()

    with open_hashed(str(file)) as content:
        for number, line in decoded_lines(str(file), content):
            where = f"{file}, line {number}"
            if isinstance(line, UnicodeDecodeError):
                fault = fault or f"{where}, is not UTF-8: {line.reason}"
                continue
            if not line.strip() or line.startswith("-DOCSTART-"):
                yield from sentence()
                continue
            # A word may hold a blank if tabs separate the columns, and it may always hold a no-break space.
            within = line.strip(" \t")
            fields = [field.strip(" ") for field in (within.split("\t") if "\t" in within else re.split(" +", within))]
            if len(fields) < 2 or not fields[0]:
                fault = fault or f"{where}, does not have both a word and its tag"
                continue
            words.append(fields[0])
            tags.append(fields[-1])
            places.append(where)
    yield from sentence()


def _table(file: Path, classes: ClassNames, bad: BadRows) -> list[Tagged]:
    rows = list(rows_of(str(file), bad))
    columns = [column for column in TAGS if column in columns_of(rows)]
    for column, names in named_classes(str(file)).items():
        order = match_names(classes.names, names)
        if order is not None:  # the file may number the same tags in another order
            in_words(rows, column, [classes.names[place] for place in order])
    chosen = _column(columns, rows, classes)
    if rows and chosen is not None:
        report_unread(str(file), columns_of(rows), {"tokens", chosen, *UNUSED})
    found = []
    for number, row in rows:
        where = f"{file}, row {number}"
        words, tags = row.get("tokens"), row.get(chosen)
        if not isinstance(words, list) or not isinstance(tags, list):
            bad.add(f"{where}, does not have both a list 'tokens' and a list of tags: {', '.join(TAGS)}")
            continue
        words = [str(word) if isinstance(word, int) and not isinstance(word, bool) else word for word in words]
        fault = next((fault for word in words if (fault := text_fault(word, "a word")) is not None), None)
        if fault is not None:
            bad.add(f"{where}: {fault}")
        elif not words or len(words) != len(tags):
            bad.add(f"{where}, has {len(words)} words and {len(tags)} tags: give one for each")
        else:
            found.append(Tagged(words, tags, [where] * len(words)))
    return found


def _column(columns: list[str], rows: Iterable[tuple[int, dict[Any, Any]]], classes: ClassNames) -> str | None:
    """Choose the column of tags with the most tags of the model. If several are equal, choose the more likely name."""
    if len(columns) < 2:
        return next(iter(columns), None)
    if Scheme.of(classes.names) is None:  # the model's tags are parts of speech, not entities
        columns = sorted(columns, key=lambda column: column == "ner_tags")

    def known(column: str) -> float:
        tags = [tag for _, row in rows if isinstance(row.get(column), list) for tag in row[column]]
        written = classes.as_written(tags, True, column)
        return sum(canonical(tag) in written for tag in tags) / max(len(tags), 1)

    return max(columns, key=known)
