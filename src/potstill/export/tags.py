"""Sentences with a tag for each word: reading them, running them, and scoring what is found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from potstill.corpus.lines import decoded_lines, open_hashed, unreadable
from potstill.errors import PotstillError
from potstill.export.source import Arrays, Source

TAGS = ("ner_tags", "pos_tags", "tags", "labels")
"""What data sets call the column."""

Sentence = tuple[list[str], list[int]]
"""Words, and the number of the tag of each."""

Span = tuple[int, int, str]
"""First word, word after the last, kind."""


def read_tagged(path: str, names: Mapping[int, str]) -> list[Sentence]:
    """Read a `.jsonl` or `.parquet` file with a list `tokens` and a list of tags, or two columns of CoNLL's form.

    Args:
        path: the file. Tags, in `ner_tags`, `pos_tags`, `tags` or `labels`, are names or numbers of the model's; a
            file of any other ending has a word a line, its tag last, and an empty line after each sentence.
        names: number of a tag → its name, as the model has them.

    Raises:
        PotstillError: there is no such file, or a row is not of that form or has a tag that the model has not.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise PotstillError(f"There is no file {path}: name one of sentences with tags (.jsonl, .parquet or CoNLL's).")
    known: dict[Any, int] = {name: number for number, name in names.items()} | {number: number for number in names}
    rows = _parquet(file) if file.suffix == ".parquet" else _lines(file)
    sentences = []
    for where, words, tags in rows:
        if not words or len(words) != len(tags):
            raise PotstillError(f"{where} has {len(words)} words and {len(tags)} tags: give one for each.")
        strange = next((tag for tag in tags if tag not in known), None)
        if strange is not None:
            raise PotstillError(f"{where} has the tag {strange!r}; the model has {', '.join(names.values())}.")
        sentences.append((list(map(str, words)), [known[tag] for tag in tags]))
    if not sentences:
        raise PotstillError(f"{path} holds no sentence.")
    return sentences


def tag_batches(source: Source, sentences: list[list[str]]) -> tuple[list[Arrays], list[dict[int, int]]]:
    """Return what the model reads of each sentence, and by number of a word the place of its first token.

    Words that the model's length cuts off have none, nor have those of which the tokenizer leaves nothing.
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
    """Return the accuracy over words and, where tags begin with B- and I-, the F1 of whole entities, in percent."""
    right = words = found_right = found = wanted = 0
    for row, at, numbers in zip(logits, places, tags, strict=True):
        guessed, numbers = row[list(at.values())].argmax(axis=-1).tolist(), [numbers[word] for word in at]
        right += sum(mine == theirs for mine, theirs in zip(guessed, numbers, strict=True))
        words += len(at)
        mine, theirs = (set(entities([names[number] for number in tagged])) for tagged in (guessed, numbers))
        found_right, found, wanted = found_right + len(mine & theirs), found + len(mine), wanted + len(theirs)
    accuracy = 100 * right / max(words, 1)
    if not any(name.startswith("B-") for name in names.values()):
        return {"accuracy": accuracy, "score": accuracy}
    f1 = 200 * found_right / max(found + wanted, 1)
    return {"accuracy": accuracy, "f1": f1, "score": f1}


def entities(tags: list[str]) -> Iterator[Span]:
    """Yield the entities of a sentence: B-X begins one, I-X continues one of the same kind or else begins one.

    That is how CoNLL's own script counts (Tjong Kim Sang and De Meulder 2003, section 2.4).
    """
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, of = tag.partition("-")
        continues = mark == "I" and of == kind
        if kind and not continues:
            yield begin, place, kind
            kind = ""
        if mark in ("B", "I") and not continues:
            begin, kind = place, of


def _lines(file: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    words: list[Any] = []
    tags: list[Any] = []
    is_json = ".jsonl" in file.suffixes
    number = 0
    with open_hashed(str(file)) as content:
        for number, line in decoded_lines(str(file), content):
            where = f"{file}, line {number},"
            if isinstance(line, UnicodeDecodeError):
                raise PotstillError(f"{where} is not UTF-8: {line.reason}.")
            if is_json and line.strip():
                try:
                    yield where, *_of_row(json.loads(line), where)
                except ValueError as error:
                    raise PotstillError(f"{where} is not JSON: {error}.") from error
            elif line.split() and not line.startswith("-DOCSTART-"):
                words.append(line.split()[0])
                tags.append(line.split()[-1])
            elif words:
                yield where, words, tags
                words, tags = [], []
    if words:
        yield f"{file}, line {number},", words, tags


def _parquet(file: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(str(file), error) from error
    for number, row in enumerate(rows, 1):
        yield f"{file}, row {number},", *_of_row(row, f"{file}, row {number},")


def _of_row(row: Any, where: str) -> tuple[list[Any], list[Any]]:
    column = next((name for name in TAGS if isinstance(row, dict) and name in row), None)
    if column is None or not isinstance(row.get("tokens"), list) or not isinstance(row[column], list):
        raise PotstillError(f"{where} has not both a list 'tokens' and one of tags: {', '.join(TAGS)}.")
    return row["tokens"], row[column]
