"""Sentences with a tag for each word: reads them, makes a model's inputs of them, and scores the tags it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import PotstillError
from potstill.export.source import Arrays, Source
from potstill.tasks.entities import Scheme
from potstill.tasks.labels import ClassNames, canonical, in_words, match_names
from potstill.tasks.rows import BadRows, columns_of, named_classes, report_unread, rows_of
from potstill.tasks.tag_scores import score_tags
from potstill.tasks.tagged import TAGS, UNUSED, Tagged, conll_sentences, row_sentences

Sentence = tuple[list[str], list[int]]
"""The words, and the number of each word's tag."""


def read_tagged(path: str, names: Mapping[int, str], bad: BadRows | None = None) -> list[Sentence]:
    """Read a `.jsonl` or `.parquet` file with a list `tokens` and a list of tags, or a file in CoNLL's format.

    Args:
        path: the file. In `.jsonl` and `.parquet` the tags are in `ner_tags`, `pos_tags`, `tags` or `labels`. They are
            names or numbers of the model's tags, or numbers of names that a parquet file gives. A file with any other
            ending has one word on each line: see `conll_sentences`.
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
    tagged = _table(file, classes, bad) if typed else list(conll_sentences(str(file), bad))
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
        raise PotstillError(f"{path} holds no sentence: check that it is the right file.")
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
    found, wanted = [], []
    for row, at, numbers in zip(logits, places, tags, strict=True):
        found.append(row[list(at.values())].argmax(axis=-1).tolist())
        wanted.append([numbers[word] for word in at])
    return score_tags(found, wanted, [names[number] for number in range(len(names))]).metrics


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
    return row_sentences(str(file), rows, "tokens", chosen, bad)


def _column(columns: list[str], rows: Iterable[tuple[int, dict[Any, Any]]], classes: ClassNames) -> str | None:
    """Choose the column of tags with the most tags of the model. If several are equal, choose the more likely name."""
    if len(columns) < 2:
        return next(iter(columns), None)
    if Scheme.of(classes.names) is None:  # the model's tags are parts of speech, not entities
        columns = sorted(columns, key=lambda column: column == "ner_tags")

    numbers = range(len(classes.names))
    possible = {*classes.names, *numbers, *map(str, numbers)}

    def known(column: str) -> float:
        tags = [tag for _, row in rows if isinstance(row.get(column), list) for tag in row[column]]
        return sum(canonical(tag) in possible for tag in tags) / max(len(tags), 1)

    return max(columns, key=known)
