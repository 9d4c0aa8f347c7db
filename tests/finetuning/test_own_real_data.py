"""Real files of users, where the environment variable POTSTILL_TEST_DATA names a folder of them.

Expected there: `own/banking77`, `own/goemotions`, `own/wnut17`, `ud/en-dev.conllu` and `glue/STS-B`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potstill.tasks.own import OWN, OwnTask
from potstill.tasks.own_rows import OwnRows, read_own_rows
from potstill.tasks.own_tags import read_own_tags
from potstill.tasks.task import OwnFiles

DATA = os.environ.get("POTSTILL_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="POTSTILL_TEST_DATA names no folder of real files")
FOLDER = Path(DATA or "")


def read(kind: str, train: str, dev: str, **files: str | tuple[str, ...]) -> OwnRows:
    task = OWN[kind]
    assert isinstance(task, OwnTask)
    return read_own_rows(task, OwnFiles(train=str(FOLDER / train), eval=str(FOLDER / dev), **files))  # type: ignore[arg-type]


def test_banking77() -> None:
    found = read("classification", "own/banking77/train.csv", "own/banking77/test.csv", label_column="category")
    assert len(found.labels) == 77
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 10_003, "dev": 3_080}


def test_goemotions() -> None:
    names = str(FOLDER / "own/goemotions/labels.txt")
    columns = ("text", "label", "id")
    files = ("own/goemotions/train.tsv", "own/goemotions/dev.tsv")
    found = read("multilabel", *files, columns=columns, label_names=names)
    assert len(found.labels) == 28
    assert found.labels[27] == "neutral"
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 43_410, "dev": 5_426}
    assert not any(text.startswith('"""') for text in found.splits["dev"]["text"])


def test_sts_b() -> None:
    columns = {"text_column": "sentence1", "pair_column": "sentence2", "label_column": "score"}
    found = read("regression", "glue/STS-B/train.tsv", "glue/STS-B/dev.tsv", **columns)
    assert len(found.splits["train"]) == 5_749
    assert max(found.splits["dev"]["label"]) == 5


def test_the_words_of_all_treebanks() -> None:
    """As many as the lines that begin with a whole number, in every treebank, and each with one of 17 tags."""
    files = sorted((FOLDER / "ud").glob("*.conllu"))
    assert len(files) == 14
    trees = str(FOLDER / "ud" / "en-train.conllu")
    found = read_own_tags(OwnFiles(trees, tuple(map(str, files))))
    assert len(found.labels) <= 17
    for file in files:
        lines = [line.split("\t") for line in file.read_text().splitlines() if not line.startswith("#")]
        words = [fields[1] for fields in lines if fields[0].isdecimal()]
        tokens = found.splits[file.stem.removesuffix("x")]["tokens"][:]
        assert [word for sentence in tokens for word in sentence] == words


def test_wnut17_and_a_treebank() -> None:
    files = [str(FOLDER / "own" / "wnut17" / f"{split}.conll") for split in ("train", "dev")]
    found = read_own_tags(OwnFiles(*files))
    assert len(found.labels) == 13
    assert len(found.splits["train"]) == 3_394
    trees = str(FOLDER / "ud" / "en-dev.conllu")
    found = read_own_tags(OwnFiles(trees, trees))
    assert {"NOUN", "VERB", "ADJ"} < set(found.labels)
    assert len(found.labels) <= 17  # the universal parts of speech: no multi-word token or empty node is read
