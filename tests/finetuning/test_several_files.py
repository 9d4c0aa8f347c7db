"""Several files to train on are read as one, and each of several files to score has its own scores."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuning_samples import Json, flags, results, sentence, write, write_lines

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation import tables
from potstill.finetuning.own_texts import OwnTextData
from potstill.finetuning.tags import TagData
from potstill.tasks.own import KINDS, read_task
from potstill.tasks.own_rows import read_own_rows
from potstill.tasks.own_tables import sources_of, split_names
from potstill.tasks.own_tags import read_own_tags
from potstill.tasks.task import OwnFiles


def conllu(rng: random.Random, count: int, at: int) -> str:
    """Sentences in which the word at one place is a verb, as if it were the word order of a language."""
    sentences = []
    for _ in range(count):
        words = sentence(rng, rng.randint(3, 7)).split()
        tags = ["NOUN" if n != at else "VERB" for n in range(len(words))]
        rest = "\t_" * 4
        lines = [f"{n}\t{w}\t_\t{tag}\t_\t_{rest}" for n, (w, tag) in enumerate(zip(words, tags, strict=True), 1)]
        sentences.append("\n".join(lines) + "\n\n")
    return "".join(sentences)


@pytest.fixture(scope="module")
def treebanks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("treebanks")
    rng = random.Random(3)
    for language, at in (("aa", 0), ("bb", 0), ("cc", 2)):
        for split, count in (("train", 24), ("test", 9)):
            if (language, split) != ("cc", "train"):
                write(folder / f"{language}-{split}.conllu", conllu(rng, count, at))
    write(folder / "tags.yaml", "kind: tagging\ntrain: [aa-train.conllu, bb-train.conllu]\neval: '*-test.conllu'\n")
    return folder


def test_a_tagger_of_several_languages(
    treebanks: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = flags(model=bert, task="tagging", output_dir=tmp_path / "out", num_train_epochs=6, learning_rate=6e-3)
    train = ["--train_data", str(treebanks / "*-train.conllu")]
    dev = [str(treebanks / f"{language}-test.conllu") for language in ("aa", "bb", "cc")]
    assert main([*options, *train, "--eval_data", *dev]) == 0
    found = results(tmp_path / "out")
    by_file = {name: found["metrics"][name] for name in ("aa-test", "bb-test", "cc-test")}
    assert found["metrics"].keys() == by_file.keys()
    assert all(metrics["score"] == metrics["accuracy"] for metrics in by_file.values())
    assert found["score"] == pytest.approx(np.mean([metrics["score"] for metrics in by_file.values()]))
    assert by_file["aa-test"]["score"] > by_file["cc-test"]["score"] + 10  # never seen in training
    assert found["rows"] == {"train": 48, "aa-test": 9, "bb-test": 9, "cc-test": 9}
    words = sum(line[:1].isdecimal() for path in dev for line in Path(path).read_text().splitlines())
    assert sum(tag["support"] for tag in found["per_label"].values()) == words
    printed = capsys.readouterr().out
    assert f"tagging: score {found['score']:.1f}, the mean of aa-test " in printed
    assert main(["compare", str(tmp_path / "out"), "--format", "markdown"]) == 0
    assert "aa-test/bb-test/cc-test" in capsys.readouterr().out
    monkeypatch.setattr(tables, "TOGETHER", 2)
    assert main(["compare", str(tmp_path / "out"), "--format", "markdown"]) == 0
    assert "tagging (aa-test) | tagging (bb-test) | tagging (cc-test)" in capsys.readouterr().out.casefold()
    assert "aa-test accuracy" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_declares_several(treebanks: Path) -> None:
    files = read_task(str(treebanks / "tags.yaml")).files  # type: ignore[attr-defined]
    found = read_own_tags(files)
    assert list(found.splits) == ["train", "aa-test", "bb-test", "cc-test"]
    single = read_own_tags(OwnFiles(str(treebanks / "aa-train.conllu"), str(treebanks / "cc-test.conllu")))
    assert list(single.splits) == ["train", "dev"]
    assert found.splits["train"][:24] == single.splits["train"][:]
    assert found.splits["cc-test"][:] == single.splits["dev"][:]
    held_out = read_own_tags(OwnFiles((str(treebanks / "aa-train.conllu"), str(treebanks / "bb-train.conllu"))))
    assert (len(held_out.splits["train"]), len(held_out.splits["dev"])) == (38, 10)


def text_rows(count: int, seed: int) -> list[Json]:
    rng = random.Random(seed)
    return [
        {"text": sentence(rng, 4), "label": "ab"[n % 2], "labels": ["a", "b"][: rng.randint(0, 2)], "score": n % 5}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("kind", "column"), [("classification", "label"), ("multilabel", "labels"), ("regression", "score")]
)
def test_scores_of_texts_by_file(tmp_path: Path, kind: str, column: str) -> None:
    """Each file is scored as if it were alone; figures of labels and the threshold are over all rows."""
    for name, count in (("one.jsonl", 12), ("two.jsonl", 30), ("both.jsonl", 42)):
        rows = text_rows(42, 1)
        write_lines(tmp_path / name, {12: rows[:12], 30: rows[12:], 42: rows}[count])
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("one", "two", "both")}

    def data(*scored: str) -> Any:
        files = OwnFiles((paths["one"], paths["two"]), tuple(paths[name] for name in scored), label_column=column)
        return OwnTextData(KINDS[kind](kind, kind), files)

    several, together = data("one", "two"), data("both")
    assert together.train[:] == together.dev["dev"][:]
    logits = np.random.default_rng(0).normal(size=(42, max(1, len(several.labels)))).astype(np.float32)
    parts = {"one": logits[:12], "two": logits[12:], "dev": logits}

    class Labels:
        def __init__(self, of: Any, name: str) -> None:
            self.name, self.values = name, {"labels": of._labels(of.dev[name])}

    def score(of: Any) -> Json:
        return of.score(lambda rows: {"logits": parts[rows.name]}, {name: Labels(of, name) for name in of.dev})

    found, whole = score(several), score(together)
    assert found["score"] == pytest.approx((found["one"]["score"] + found["two"]["score"]) / 2)
    for name in ("per_label", "confusion", "threshold"):
        assert found.get(name) == whole.get(name)
    assert found["one"].keys() == whole.keys() - {"per_label", "confusion", "threshold"}
    if kind == "classification":
        right = logits[:12].argmax(1) == several._labels(several.dev["one"])
        assert found["one"]["accuracy"] == pytest.approx(100 * right.mean())
    if kind == "multilabel":
        guesses = 1 / (1 + np.exp(-logits[:12].astype(np.float64))) >= found["threshold"]
        labels = several._labels(several.dev["one"]) > 0
        f1 = 200 * (guesses & labels).sum() / (guesses.sum() + labels.sum())
        assert found["one"]["micro_f1"] == pytest.approx(f1)


def test_names_of_files() -> None:
    assert split_names(["a/b.conllu"]) == ["dev"]
    assert split_names(["ud/en-test.conllu", "ud/fr-test.conllu.gz"]) == ["en-test", "fr-test"]
    assert split_names(["en/test.csv", "fr/test.csv"]) == ["en/test", "fr/test"]
    assert split_names(["en/train.csv", "fr/other.csv"]) == ["en/train", "fr/other"]
    assert split_names(["a.csv", "a.tsv"]) == ["a.csv", "a.tsv"]
    assert split_names(["x/score.csv", "score.csv"]) == ["x/score.csv", "score.csv"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train_data", "none-*.conllu"], "--train_data: the pattern none-*.conllu matches no file: check it."),
        (["--train_data", "{0}", "{0}"], "--train_data names {0} twice: name it once."),
        (["--train_data", "{0}", "gone.conllu"], "There is no file gone.conllu"),
        (["--train_data", "{0}", "--eval_data", "{0}", "{1}"], "broken.conllu, line 2, has 9 columns instead of 10"),
    ],
)
def test_bad_files(
    treebanks: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    good, broken = treebanks / "aa-train.conllu", tmp_path / "broken.conllu"
    write(broken, "# a\n1\ta\ta\tNOUN" + "\t_" * 5 + "\n")
    names = [one.format(good, broken) for one in options]
    assert main([*flags(model=bert, task="tagging", output_dir=tmp_path / "out"), *names]) == 1
    assert said.format(good, broken) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_file_for_tasks_that_read_one(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("questions", "rerank"):
        argv = [*flags(model=bert, task=task, output_dir=tmp_path / "out"), "--train_data", "a.json", "b.json"]
        assert main(argv) == 1
        assert f"names 2 files, but {task} reads one: join them" in capsys.readouterr().err
    write(tmp_path / "task.yaml", "kind: questions\ntrain: [a.json, b.json]\n")
    with pytest.raises(PotstillError, match="train is a list, but questions are read from one file: name it"):
        read_task(str(tmp_path / "task.yaml"))
    assert sources_of(["b", "a"], "--x") == ["b", "a"]


def test_labels_of_all_files_are_known(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "x", "label": "one"}])
    write(tmp_path / "b.csv", "text,label\ny,two\n")
    write(tmp_path / "c.csv", "text,label\nz,two\nz,one\nz,three\n")
    task = KINDS["classification"]("classification", "classification")
    files = OwnFiles((str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")), str(tmp_path / "c.csv"))
    with pytest.raises(PotstillError, match=r"'three', which .*a.jsonl and 1 more file does not have"):
        read_own_rows(task, files)
    found = read_own_rows(task, files, "skip")
    assert found.labels == ("one", "two")
    assert found.bad_rows == {"train": 0, "dev": 1}
    assert json.loads(json.dumps(found.splits["train"]["text"][:])) == ["x", "y"]


def test_tag_data_samples_each_file(treebanks: Path) -> None:
    files = OwnFiles(str(treebanks / "aa-train.conllu"), str(treebanks / "*-test.conllu"))
    data = TagData(KINDS["tagging"]("tagging", "Tagging"), files, max_train_samples=5, max_eval_samples=4)
    assert [len(data.train), *map(len, data.dev.values())] == [5, 4, 4, 4]
