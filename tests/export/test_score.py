"""The score before and after, for every head: checked with an export that is the source, and with one that is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_samples import DISTIL, SIZES
from samples import written_text
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from potstill.errors import PotstillError
from potstill.export.check import Agreement, compare, hide
from potstill.export.score import score_both
from potstill.export.source import Source
from potstill.export.tags import entities, tag_batches, tag_scores

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


class Changed:
    """Says what its source says, and something on top of it."""

    def __init__(self, source: Source, add: Any) -> None:
        self.source, self.add = source, add

    def run(self, inputs: Any) -> Any:
        return {name: logits + self.add(logits) for name, logits in self.source.run(inputs).items()}


def backwards(logits: Any) -> Any:
    return -2 * logits


@pytest.fixture(scope="module")
def sources(new_model: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> dict[str, Source]:
    vocabulary = len(tiny_tokenizer)
    bert = {"vocab_size": vocabulary, "max_position_embeddings": 48, **SIZES}
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {name: n for n, name in enumerate(TAGS)}}
    distil = DistilBertConfig(vocab_size=vocabulary, max_position_embeddings=48, **DISTIL)
    made = {
        "classes": new_model(BertForSequenceClassification, BertConfig(num_labels=2, **bert)),
        "numbers": new_model(BertForSequenceClassification, BertConfig(num_labels=1, **bert)),
        "tags": new_model(BertForTokenClassification, BertConfig(**labels, **bert)),
        "questions": new_model(BertForQuestionAnswering, BertConfig(**bert)),
        "words": new_model(DistilBertForMaskedLM, distil),
    }
    return {name: Source.open(str(folder)) for name, folder in made.items()}


def sst2(folder: Path, rows: int = 23) -> str:
    (folder / "SST-2").mkdir()
    lines = [f"word number {'very ' * (number % 7)}{number}\t{number % 2}" for number in range(rows)]
    (folder / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return str(folder)


def test_a_difference_is_measured(sources: dict[str, Source]) -> None:
    source = sources["classes"]
    found = compare(source, Changed(source, lambda logits: 0.5))
    assert found.largest == pytest.approx(0.5, abs=1e-5)
    assert found.same == 1
    assert compare(source, source) == Agreement(0, found.spread, 1, found.answers)
    assert compare(source, Changed(source, backwards)).same < 0.1
    assert not compare(source, Changed(source, lambda logits: np.nan)).relative <= 100


@pytest.mark.parametrize("name", ["numbers", "tags", "questions", "words"])
def test_answers_of_every_head(sources: dict[str, Source], name: str) -> None:
    source = sources[name]
    same = compare(source, source)
    assert (same.largest, same.same) == (0, 1)
    assert same.answers >= 50
    off = compare(source, Changed(source, backwards))
    assert off.same < 0.6
    if name == "words":  # hidden words alone are answers
        inputs = source.tokenise(["a b c d e f g h i j"])
        ids = hide(inputs["input_ids"], source)
        hidden = ids == source.tokenizer.mask_token_id
        assert hidden.sum() in (1, 2)
        assert (ids[~hidden] == inputs["input_ids"][~hidden]).all()


def test_a_sentence_task(sources: dict[str, Source], tmp_path: Path) -> None:
    source, data = sources["classes"], sst2(tmp_path)
    scores = score_both(source, source, "sst2", data, None)
    rows = [line.split("\t") for line in (tmp_path / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    right = [source.run(source.tokenise([text]))["logits"].argmax() == int(label) for text, label in rows]
    assert scores.before == scores.after
    assert scores.before["accuracy"] == pytest.approx(100 * np.mean(right))
    assert (scores.lost, scores.agreement.answers) == (0, 23)
    off = score_both(source, Changed(source, backwards), "sst2", data, None)
    assert off.after["accuracy"] == pytest.approx(100 - off.before["accuracy"])
    assert score_both(source, source, "sst2", data, 5).agreement.answers == 5


def test_labels_of_ones_own(sources: dict[str, Source], tmp_path: Path) -> None:
    rows = [{"text": f"word {n}", "label": f"LABEL_{n % 2}" if n % 3 else str(n % 2)} for n in range(9)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = score_both(sources["classes"], sources["classes"], None, str(tmp_path), None)
    assert set(scores.before) == {"accuracy", "f1", "score"}
    rows = [{"text": f"word {'a ' * n}{n}", "label": n / 2} for n in range(9)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = sources["numbers"]
    scores = score_both(source, Changed(source, backwards), None, str(tmp_path), None)
    assert scores.after["pearson"] == pytest.approx(-scores.before["pearson"], abs=1e-3)
    assert {"pearson", "spearman"} < set(scores.before)


def test_entities() -> None:
    tagged = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER", "O", "B-LOC"]
    assert list(entities(tagged)) == [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC"), (5, 6, "PER"), (7, 8, "LOC")]
    assert list(entities(["I-PER", "I-PER"])) == [(0, 2, "PER")]
    assert list(entities(["O"])) == []


def test_tags(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["tags"]
    generator = np.random.default_rng(0)
    sentences = [["alpha", "word", "of", "many"][: 2 + n % 3] for n in range(12)]
    tags = [generator.integers(5, size=len(words)).tolist() for words in sentences]
    named = tmp_path / "tags.jsonl"
    rows = zip(sentences, tags, strict=True)
    named.write_text("\n".join(json.dumps({"tokens": w, "ner_tags": [TAGS[n] for n in t]}) for w, t in rows))
    conll = tmp_path / "tags.conll"
    lines = [
        "\n".join(f"{word} x {TAGS[n]}" for word, n in zip(words, numbers, strict=True)) + "\n"
        for words, numbers in zip(sentences, tags, strict=True)
    ]
    conll.write_text("-DOCSTART- -X- O\n\n" + "\n".join(lines))
    scores = score_both(source, source, None, str(named), None)
    assert scores == score_both(source, source, None, str(conll), None)
    tokens = [len(source.tokenizer(words, is_split_into_words=True)["input_ids"]) for words in sentences]
    assert score_both(source, source, None, str(named), 11).agreement.answers == sum(tokens[:11])
    right = []
    for words, numbers in zip(sentences, tags, strict=True):
        encoded = source.tokenizer(words, is_split_into_words=True)
        logits = source.run({name: np.asarray([encoded[name]]) for name in source.inputs})["logits"][0]
        first = [encoded.word_ids().index(n) for n in range(len(words))]
        right += (logits[first].argmax(axis=1) == numbers).tolist()
    assert scores.before["accuracy"] == pytest.approx(100 * np.mean(right))
    assert 0 <= scores.before["f1"] <= 100
    conll.write_text("word B-ORG\n")
    with pytest.raises(PotstillError, match="line 1, has the tag 'B-ORG'; the model has O, B-PER"):
        score_both(source, source, None, str(conll), None)


def test_a_word_without_tokens_leaves_the_others_their_tags(sources: dict[str, Source]) -> None:
    words, tags = ["alpha", "\u200b", "word", "of"], [1, 4, 2, 0]
    (row,), (places,) = tag_batches(sources["tags"], [words])
    assert list(places) == [0, 2, 3]
    logits = np.zeros((len(row["input_ids"]), len(TAGS)))
    for word, place in places.items():
        logits[place, tags[word]] = 1
    assert tag_scores([logits], [places], [tags], dict(enumerate(TAGS)))["accuracy"] == 100


def test_questions(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["questions"]
    context = "the old still stands where two rivers meet in the valley"
    qas = [
        {"id": str(n), "question": "where is it", "answers": [{"text": word, "answer_start": context.index(word)}]}
        for n, word in enumerate(("rivers", "old still", "valley"))
    ]
    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}))
    scores = score_both(source, source, None, str(file), None)
    assert scores.before == scores.after
    assert {"exact", "f1"} < set(scores.before)
    assert scores.agreement.answers >= 6  # a start and an end of each window
    assert score_both(source, Changed(source, backwards), None, str(file), None).agreement.same < 1


def test_fill_mask(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["words"]
    file = tmp_path / "text.txt"
    file.write_text(written_text(8, seed=3))
    scores = score_both(source, source, None, str(file), None)
    assert scores.before == scores.after
    assert scores.before["masked-LM loss"] > 0
    shifted = score_both(source, Changed(source, lambda logits: 3.0), None, str(file), None)
    assert shifted.after["masked-LM loss"] == pytest.approx(shifted.before["masked-LM loss"], abs=1e-4)
    off = score_both(source, Changed(source, backwards), None, str(file), None)
    assert off.after["masked-LM loss"] != pytest.approx(off.before["masked-LM loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "task", "data", "message"),
    [
        ("classes", "nonsense", None, "There is no task 'nonsense'"),
        ("classes", "stsb", None, "is for text-classification with 2 labels"),
        ("words", "sst2", None, "it is for fill-mask"),
        ("tags", None, "nowhere.jsonl", "There is no file nowhere.jsonl"),
        ("questions", None, "nowhere.json", "There is no file or folder nowhere.json"),
        ("words", None, "nowhere.txt", "nowhere.txt"),
        ("classes", None, "nowhere", "nowhere is not a folder"),
    ],
)
def test_bad_data(
    sources: dict[str, Source], no_hub: None, name: str, task: str | None, data: str | None, message: str
) -> None:
    with pytest.raises(PotstillError, match=message):
        score_both(sources[name], sources[name], task, data, None)
