"""Languages sampled by their size: the shares, the documents that are repeated or left out, and bad input."""

import hashlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from potstill.corpus import writing
from potstill.corpus.blocks import Corpus
from potstill.corpus.languages import LanguageReader
from potstill.corpus.prepare import prepare
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import find_sources_of_each
from potstill.corpus.worker import is_held_out
from potstill.errors import PotstillError

FILES = ["train.arrow", "validation.arrow", "token_counts.npy"]


@pytest.fixture
def languages(tmp_path: Path) -> list[str]:
    """A large, a medium and a small language, each document different from all others."""
    rng = random.Random(7)
    paths = []
    for name, count in (("en", 3000), ("fr", 500), ("is", 40)):
        path = tmp_path / f"{name}.txt"
        lines = [f"{name} {number} " + "cat " * rng.randint(1, 30) for number in range(count)]
        path.write_text("\n".join(lines) + "\n")
        paths.append(str(path))
    return paths


def reader(paths: list[str], exponent: float, seed: int = 0) -> LanguageReader:
    sources = find_sources_of_each(paths, Path("/nowhere"))
    return LanguageReader(list(zip(paths, sources, strict=True)), ReadingOptions(), exponent, seed)


def read(found: LanguageReader) -> list[tuple[int, bytes]]:
    return [pair for first, documents in found.passes() for pair in enumerate(documents, first) if pair[1]]


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.7, 1.0])
def test_the_shares_are_those_of_the_exponent(languages: list[str], exponent: float) -> None:
    found = reader(languages, exponent)
    sizes = [sum(map(len, Path(path).read_bytes().splitlines())) for path in languages]
    expected = [size**exponent / sum(size**exponent for size in sizes) for size in sizes]
    got = Counter()
    for _, document in read(found):
        got[document.split()[0].decode()] += len(document)
    for path, record, share, size in zip(languages, found.languages, expected, sizes, strict=True):
        assert (record.text, record.bytes) == (path, size)
        assert record.share == pytest.approx(share)
        assert record.passes == pytest.approx(share * sum(sizes) / size)
        # The part of a pass is drawn: three standard deviations of the largest language are about 4 % of it.
        assert got[Path(path).stem] / got.total() == pytest.approx(share, rel=0.06)


def test_each_document_keeps_its_number_and_is_read_as_often_as_its_language_or_once_more(languages: list[str]) -> None:
    plain = list(
        DocumentReader([s for each in find_sources_of_each(languages, Path("/")) for s in each], ReadingOptions())
    )
    found = reader(languages, 0.5)
    pairs = read(found)
    assert all(plain[number] == document for number, document in pairs)
    assert found.documents == len(pairs)
    times = Counter(number for number, _ in pairs)
    first = 0
    for record in found.languages:
        whole = int(record.passes)
        assert {times[number] for number in range(first, first + record.documents)} == {whole, whole + 1}
        first += record.documents
    # A repeated document is not close to its copy: all documents of a language come between, and other languages.
    small = [place for place, (_, document) in enumerate(pairs) if document == plain[3500]]
    assert len(small) >= 2
    assert min(b - a for a, b in pairwise(small)) >= 40


def test_another_seed_leaves_out_other_documents(languages: list[str]) -> None:
    first, again, other = (read(reader(languages, 0.7, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def numbers(corpus: Corpus, split: str) -> set[tuple[str, ...]]:
    tokenizer, found = corpus.tokenizer(), set()
    for item in getattr(corpus, split):
        words = tokenizer.decode(item["input_ids"]).replace("[SEP]", "|").split("|")
        found |= {tuple(word.split()[:2]) for word in words[1:] if len(word.split()) > 2}
    return found


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


def test_the_bytes_are_the_same_for_any_processes(
    tmp_path: Path, languages: list[str], tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for num_proc, batch_bytes in ((1, 2**18), (3, 500), (2, 20000)):
        monkeypatch.setattr(writing, "batch_bytes_for", lambda *_, size=batch_bytes: size)
        options = {"block_size": 16, "validation_fraction": 0.1, "language_exponent": 0.7}
        prepare(languages, str(tmp_path / f"{num_proc}"), tokenizer_folder, num_proc=num_proc, **options)
        results.append(hashes(tmp_path / f"{num_proc}"))
    assert results[0] == results[1] == results[2]
    corpus = Corpus.open(tmp_path / "3")
    manifest = corpus.manifest
    assert manifest.language_exponent == 0.7
    assert [language.text for language in manifest.languages] == languages
    assert [source.documents for source in manifest.sources] == [3000, 500, 40]
    assert manifest.skipped["empty"] == 0
    expected = [number for number, _ in read(reader(languages, 0.7))]
    held_out = sum(is_held_out(number, 0, 0.1) for number in expected)
    assert manifest.splits["validation"].documents == held_out
    assert manifest.splits["train"].documents == len(expected) - held_out


def test_no_copy_of_a_held_out_document_is_trained_on(
    tmp_path: Path, languages: list[str], tokenizer_folder: str
) -> None:
    options = {"block_size": 64, "validation_fraction": 0.3, "language_exponent": 0.0, "num_proc": 1}
    corpus = prepare(languages[1:], str(tmp_path / "out"), tokenizer_folder, **options)
    train, validation = numbers(corpus, "train"), numbers(corpus, "validation")
    assert train
    assert validation
    assert not train & validation


@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_one_language_alone_changes_nothing_and_says_so(
    tmp_path: Path, languages: list[str], tokenizer_folder: str, caplog: pytest.LogCaptureFixture, exponent: float
) -> None:
    options: dict[str, Any] = {"block_size": 16, "validation_fraction": 0.1, "num_proc": 1}
    prepare(languages[1:2], str(tmp_path / "plain"), tokenizer_folder, **options)
    assert not caplog.records
    prepare(languages[1:2], str(tmp_path / "one"), tokenizer_folder, language_exponent=exponent, **options)
    assert "there is only one" in caplog.text
    assert hashes(tmp_path / "plain") == hashes(tmp_path / "one")
    assert not json.loads((tmp_path / "plain" / "manifest.json").read_text()).keys() & {
        "languages",
        "language_exponent",
    }


def test_an_exponent_of_1_changes_nothing(tmp_path: Path, languages: list[str], tokenizer_folder: str) -> None:
    options: dict[str, Any] = {"block_size": 16, "validation_fraction": 0.1, "num_proc": 1}
    prepare(languages, str(tmp_path / "plain"), tokenizer_folder, **options)
    prepare(languages, str(tmp_path / "one"), tokenizer_folder, language_exponent=1.0, **options)
    assert hashes(tmp_path / "plain") == hashes(tmp_path / "one")


def test_a_trained_or_cut_vocabulary_goes_with_it(tmp_path: Path, languages: list[str], tokenizer_folder: str) -> None:
    options: dict[str, Any] = {"block_size": 16, "num_proc": 1, "language_exponent": 0.5}
    trained = prepare(languages[1:], str(tmp_path / "new"), train_tokenizer=True, vocab_size=60, **options)
    cut = prepare(languages[1:], str(tmp_path / "cut"), tokenizer_folder, prune_vocabulary=True, **options)
    # Measuring and training a tokenizer read the same documents, and are not counted.
    expected = len(read(reader(languages[1:], 0.5)))
    for corpus in (trained, cut):
        assert sum(split.documents for split in corpus.manifest.splits.values()) == expected
        assert json.loads((corpus.folder / "manifest.json").read_text())["languages"][1]["passes"] > 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (["en.txt", "fr.txt"], {"language_exponent": -0.1}, "language_exponent is -0.1"),
        (["en.txt", "fr.txt"], {"language_exponent": 1.5}, "language_exponent is 1.5"),
        (["en.txt", "fr.txt"], {"language_exponent": float("nan")}, "language_exponent is nan"),
        (["en.txt", "fr.txt"], {"unit": "texts"}, "--language_exponent repeats texts, and --unit texts leaves out"),
        (["en.txt", "en.txt"], {}, r"en.txt belongs to two languages: with"),
        (["en.txt", "empty.txt"], {}, r"language .*empty.txt has no text"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, languages: list[str], tokenizer_folder: str, text: list[str], options: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    paths = [str(tmp_path / name) for name in text]
    with pytest.raises(PotstillError, match=message) as raised:
        prepare(paths, str(tmp_path / "out"), tokenizer_folder, **({"language_exponent": 0.7} | options))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
