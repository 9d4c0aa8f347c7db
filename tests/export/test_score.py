"""The score before and after, for every head: checked with an export that is the source, and with one that is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
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
from potstill.export.check import Agreement, compare, mask_tokens
from potstill.export.score import Scores, read_check_data, score_both
from potstill.export.source import Source
from potstill.export.tags import read_tagged, tag_batches, tag_scores
from potstill.tasks.rows import BadRows

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def scored(source: Source, exported: Any, *data: Any) -> Scores:
    """Score both on the data that the other arguments of `read_check_data` name."""
    return score_both(source, exported, read_check_data(source, *data))


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
        ids = mask_tokens(inputs["input_ids"], source)
        hidden = ids == source.tokenizer.mask_token_id
        assert hidden.sum() in (1, 2)
        assert (ids[~hidden] == inputs["input_ids"][~hidden]).all()


def test_a_sentence_task(sources: dict[str, Source], tmp_path: Path) -> None:
    source, data = sources["classes"], sst2(tmp_path)
    scores = scored(source, source, "sst2", data, None)
    rows = [line.split("\t") for line in (tmp_path / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    right = [source.run(source.tokenise([text]))["logits"].argmax() == int(label) for text, label in rows]
    assert scores.before == scores.after
    assert scores.before["accuracy"] == pytest.approx(100 * np.mean(right))
    assert (scores.lost, scores.agreement.answers) == (0, 23)
    off = scored(source, Changed(source, backwards), "sst2", data, None)
    assert off.after["accuracy"] == pytest.approx(100 - off.before["accuracy"])
    assert scored(source, source, "sst2", data, 5).agreement.answers == 5


def test_labels_of_ones_own(sources: dict[str, Source], tmp_path: Path) -> None:
    rows = [{"text": f"word {n}", "label": f"LABEL_{n % 2}" if n % 3 else str(n % 2)} for n in range(9)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = scored(sources["classes"], sources["classes"], None, str(tmp_path), None)
    assert set(scores.before) == {"accuracy", "f1", "score"}
    rows = [{"text": f"word {'a ' * n}{n}", "label": n / 2} for n in range(9)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = sources["numbers"]
    scores = scored(source, Changed(source, backwards), None, str(tmp_path), None)
    assert scores.after["pearson"] == pytest.approx(-scores.before["pearson"], abs=1e-3)
    assert {"pearson", "spearman"} < set(scores.before)


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
    scores = scored(source, source, None, str(named), None)
    assert scores == scored(source, source, None, str(conll), None)
    tokens = [len(source.tokenizer(words, is_split_into_words=True)["input_ids"]) for words in sentences]
    assert scored(source, source, None, str(named), 11).agreement.answers == sum(tokens[:11])
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
        scored(source, source, None, str(conll), None)


def test_single_word_entities_and_ends_decide_the_score() -> None:
    names = dict(enumerate(["O", "S-PER", "B-PER", "E-PER", "I-PER"]))
    said = np.eye(5)[[0, 1, 0, 2, 3]]  # O S O B E
    places = {word: word for word in range(5)}
    assert tag_scores([said], [places], [[0, 1, 0, 2, 3]], names)["score"] == 100
    found = tag_scores([said], [places], [[0, 0, 0, 2, 3]], names)  # no single word is an entity
    assert found["f1"] == found["score"] == pytest.approx(200 / 3)


NAMES = dict(enumerate(TAGS))


def test_columns_with_tabs_between_are_split_there_alone(tmp_path: Path) -> None:
    file = tmp_path / "it.conll"
    file.write_text("New York\tNNP\tB-LOC\nis\tVBZ\tO\n\t\na\u00a0b x B-PER\n\u00a0\tX\tO\t\n\n\n")
    assert read_tagged(str(file), NAMES) == [(["New York", "is"], [3, 0]), (["a\u00a0b", "\u00a0"], [1, 0])]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a\tO", "b\tB-ORG"], "line 5, has the tag 'B-ORG'; the model has O, B-PER"),
        (["a\tO", "b"], "line 5, does not have both a word and its tag"),
        (["a\tO", "b\t"], "line 5, does not have both a word and its tag"),
        (["a\tO", "\tO"], "line 5, does not have both a word and its tag"),
        (["a\tO", "b\udcff\tO"], "line 5, is not UTF-8"),
    ],
)
def test_a_bad_line_spoils_its_sentence_alone(tmp_path: Path, lines: list[str], said: str) -> None:
    file = tmp_path / "it.conll"
    text = "\n".join(["x\tB-PER", "y\tI-PER", "", *lines, "c\tO", "", "z\tO", ""])
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PotstillError, match=f"{said}.*--on_bad_rows skip"):
        read_tagged(str(file), NAMES)
    bad = BadRows("skip")
    assert read_tagged(str(file), NAMES, bad) == [(["x", "y"], [1, 2]), (["z"], [0])]
    assert bad.count == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", None], "tags": [0, 0]}, "row 2: a word was expected, not None"),
        ({"tokens": ["\ud800"], "tags": [0]}, "row 2: a word holds half a surrogate pair"),
        ({"tokens": ["a"], "tags": [0, 1]}, "row 2, has 1 word and 2 tags"),
        ({"tokens": ["a"], "tags": [True]}, "row 2, has the tag True"),
        ({"tokens": ["a"], "tags": [-100]}, "row 2, has the tag -100"),
        ({"tokens": ["a"]}, "row 2, does not have both a list 'tokens'"),
        ([], "line 2, is not a JSON object"),
        ("[" * 99_999, "line 2, is not JSON"),
    ],
)
def test_a_bad_row_of_tags(tmp_path: Path, row: Any, said: str) -> None:
    file = tmp_path / "it.jsonl"
    good = [json.dumps({"tokens": ["x", 7], "tags": ["B-PER", 0]}), json.dumps({"tokens": ["z"], "tags": [4.0]})]
    file.write_text("\n".join([good[0], row if isinstance(row, str) else json.dumps(row), good[1]]))
    with pytest.raises(PotstillError, match=f"{said}.*--on_bad_rows skip"):
        read_tagged(str(file), NAMES)
    assert read_tagged(str(file), NAMES, BadRows("skip")) == [(["x", "7"], [1, 0]), (["z"], [4])]


def test_tags_that_are_digits(tmp_path: Path) -> None:
    file = tmp_path / "it.jsonl"
    file.write_text(json.dumps({"tokens": ["a", "b"], "tags": [1, "1"]}))
    digits = {0: "1", 1: "2", 2: "3"}
    assert read_tagged(str(file), digits) == [(["a", "b"], [1, 0])]
    table = tmp_path / "it.conll"
    table.write_text("a\t1\nb\t3\n")
    assert read_tagged(str(table), digits) == [(["a", "b"], [0, 2])]
    table.write_text("a\t1\nb\t2\n")
    with pytest.raises(PotstillError, match="can be names of classes or numbers"):
        read_tagged(str(table), digits)
    table.write_text("a\t3\n")
    assert read_tagged(str(table), NAMES) == [(["a"], [3])]


def test_of_several_columns_of_tags_the_model_s_is_read_and_the_others_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "it.jsonl"
    numbered = {"id": "7", "tokens": ["a"], "pos_tags": [2], "ner_tags": [3], "note": ""}
    file.write_text(json.dumps(numbered))
    assert read_tagged(str(file), NAMES) == [(["a"], [3])]
    assert capsys.readouterr().err == f"{file}: nothing is read from the columns 'pos_tags', 'note'.\n"
    rows = [{"tokens": ["a", "b"], "tags": tags, "labels": [1, 2]} for tags in (["1", "3"], ["2", "1"])]
    file.write_text("\n".join(map(json.dumps, rows)))  # numbers in a column that is not read are not judged
    assert read_tagged(str(file), {0: "1", 1: "2", 2: "3"}) == [(["a", "b"], [0, 2]), (["a", "b"], [1, 0])]
    capsys.readouterr()
    file.write_text(json.dumps(numbered))
    parts = dict(enumerate(["NOUN", "VERB", "ADJ", "ADV"]))
    assert read_tagged(str(file), parts) == [(["a"], [2])]
    file.write_text(json.dumps(numbered | {"ner_tags": ["B-LOC"], "pos_tags": ["VERB"]}))
    assert read_tagged(str(file), parts) == [(["a"], [1])]


def test_a_parquet_file_that_names_its_numbers_is_read_by_these_names(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    names = [*TAGS[::-1]]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    file = tmp_path / "it.parquet"
    Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [["O", "B-PER"]]}, features).to_parquet(str(file))
    assert read_tagged(str(file), NAMES) == [(["a", "b"], [0, 1])]
    assert read_tagged(str(file), dict(enumerate("abcde"))) == [(["a", "b"], [4, 3])]  # of other names: numbers
    features = Features({"text": Value("string"), "label": ClassLabel(names=["LABEL_1", "LABEL_0"])})
    rows = {"text": [f"word {n}" for n in range(20)]}
    source = sources["classes"]
    said = [int(source.run(source.tokenise([text]))["logits"].argmax()) for text in rows["text"]]
    Dataset.from_dict(rows | {"label": [1 - answer for answer in said]}, features).to_parquet(tmp_path / "dev.parquet")
    assert scored(source, source, None, str(tmp_path), None).before["accuracy"] == 100


def test_a_word_without_tokens_leaves_the_others_their_tags(sources: dict[str, Source]) -> None:
    words, tags = ["alpha", "\u200b", "word", "of"], [1, 4, 2, 0]
    (row,), (places,) = tag_batches(sources["tags"], [words])
    assert list(places) == [0, 2, 3]
    logits = np.zeros((len(row["input_ids"]), len(TAGS)))
    for word, place in places.items():
        logits[place, tags[word]] = 1
    assert tag_scores([logits], [places], [tags], dict(enumerate(TAGS)))["accuracy"] == 100


def test_a_second_text_is_read(sources: dict[str, Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sources["classes"]
    pairs = [(f"word {'a ' * n}", f"of {'many ' * (20 - n)}") for n in range(20)]
    answers = [int(source.run(source.tokenise([a], [b]))["logits"].argmax()) for a, b in pairs]
    rows = [{"text": a, "text_pair": b, "label": answer} for (a, b), answer in zip(pairs, answers, strict=True)]
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert scored(source, source, None, str(tmp_path), None).before["accuracy"] == 100
    assert capsys.readouterr().err == ""
    table = tmp_path / "table" / "dev.tsv"
    table.parent.mkdir()
    lines = [f"{row['label']}\t{row['text']}\t{row['text_pair']}" for row in rows]
    table.write_text("\n".join(["label\ttext\ttext_pair", *lines, "", ""]))
    assert scored(source, source, None, str(table.parent), None).before["accuracy"] == 100
    del rows[3]["text_pair"]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(PotstillError, match=r"row 4, has no 'text_pair', only 'text', 'label'"):
        scored(source, source, None, str(tmp_path), None)
    scores = scored(source, source, None, str(tmp_path), None, "skip")
    assert (scores.bad_rows, scores.agreement.answers) == (1, 19)
    assert str(scores).endswith("; 1 bad row left out")
    rows = [{"text": row["text"], "second": row["text"], "label": row["label"]} for row in rows]
    file.write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()
    scored(source, source, None, str(tmp_path), None)
    assert capsys.readouterr().err == f"{file}: nothing is read from the column 'second'.\n"


def test_classes_that_are_named_by_digits(new_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    names = {0: "1", 1: "2", 2: "3"}
    options = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=48, **options, **SIZES)
    source = Source.open(str(new_model(BertForSequenceClassification, config)))
    texts = [f"word {'a ' * n}{n}" for n in range(30)]
    answers = [int(source.run(source.tokenise([text]))["logits"].argmax()) for text in texts]
    by_name = [names[answer] for answer in answers]
    all_but_one = 100 * 29 / 30
    for labels, score in (
        (by_name, 100),
        ([*map(int, by_name[:-1]), 3], 100 if answers[-1] == 2 else all_but_one),  # a 3 can only be a name
        ([*answers[:-1], 0], 100 if answers[-1] == 0 else all_but_one),  # a 0 can only be a number
    ):
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert scored(source, source, None, str(tmp_path), None).before["accuracy"] == pytest.approx(score)


@pytest.mark.parametrize("name", ["classes", "numbers", "tags", "words"])
def test_what_is_no_finite_number_is_no_score(sources: dict[str, Source], tmp_path: Path, name: str) -> None:
    source = sources[name]
    rows = [{"text": f"word {n}", "label": n % 2} for n in range(9)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tags.conll").write_text("alpha\tO\nword\tB-PER\n")
    (tmp_path / "text.txt").write_text(written_text(2, seed=3))
    data = tmp_path / {"tags": "tags.conll", "words": "text.txt"}.get(name, ".")
    with pytest.raises(PotstillError, match=r"The logits of the export for some rows .* not finite numbers"):
        scored(source, Changed(source, lambda logits: np.nan), None, str(data), None)


def test_questions(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["questions"]
    context = "the old still stands where two rivers meet in the valley"
    qas = [
        {"id": str(n), "question": "where is it", "answers": [{"text": word, "answer_start": context.index(word)}]}
        for n, word in enumerate(("rivers", "old still", "valley"))
    ]
    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}))
    scores = scored(source, source, None, str(file), None)
    assert scores.before == scores.after
    assert {"exact", "f1"} < set(scores.before)
    assert scores.agreement.answers >= 6  # a start and an end of each window
    assert scored(source, Changed(source, backwards), None, str(file), None).agreement.same < 1


def test_fill_mask(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["words"]
    file = tmp_path / "text.txt"
    file.write_text(written_text(8, seed=3))
    scores = scored(source, source, None, str(file), None)
    assert scores.before == scores.after
    assert scores.before["masked-LM loss"] > 0
    shifted = scored(source, Changed(source, lambda logits: 3.0), None, str(file), None)
    assert shifted.after["masked-LM loss"] == pytest.approx(shifted.before["masked-LM loss"], abs=1e-4)
    off = scored(source, Changed(source, backwards), None, str(file), None)
    assert off.after["masked-LM loss"] != pytest.approx(off.before["masked-LM loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "task", "data", "message"),
    [
        ("classes", "nonsense", None, "There is no task 'nonsense'"),
        ("classes", "stsb", None, "is for text-classification with 2 labels"),
        ("words", "sst2", None, "is for fill-mask, not for the task sst2"),
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
        scored(sources[name], sources[name], task, data, None)
