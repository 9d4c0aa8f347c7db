"""Tasks on a user's own files: trained alone and by a teacher, resumed, loaded by others, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning_samples import Json, finetuned, flags, results, sentence, squad_articles, write, write_lines
from test_finetune_resume import assert_same, interrupt
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from potstill.cli import main
from potstill.export.score import score_both
from potstill.export.source import Source
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.objective import NO_TAG
from potstill.finetuning.predict import predict

NewModel = Callable[..., Path]
FIRST = {"bol": "zebra", "kim": "apple", "lun": "mango"}
"""The first word of a text tells its label."""


def own_rows(count: int, seed: int) -> list[Json]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        first = list(FIRST)[number % 3]
        labels = [FIRST[first], *(["long"] if number % 2 else [])]
        text = " ".join([first, *(["dol"] if number % 2 else []), sentence(rng, rng.randint(1, 6))])
        rows.append({"text": text, "other": "bom ?", "label": FIRST[first], "labels": labels, "score": number % 3})
    return rows


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind of task, and files that declare the tasks."""
    folder = tmp_path_factory.mktemp("own")
    for split, count, seed in (("train", 60, 0), ("dev", 21, 1)):
        rows = own_rows(count, seed)
        lines = [",".join([row["text"], row["label"], ";".join(row["labels"])]) for row in rows]
        write(folder / f"{split}.csv", "\n".join(["text,category,all", *lines]) + "\n")
        write_lines(folder / f"{split}.jsonl", rows)
        tags = [["B-X" if word in FIRST else "O" for word in row["text"].split()] for row in rows]
        words = [
            f"{word}\t{tag}"
            for row, of in zip(rows, tags, strict=True)
            for word, tag in zip([*row["text"].split(), ""], [*of, ""], strict=True)
        ]
        write(folder / f"{split}.conll", "\n".join(line.strip() for line in words))
        write(folder / f"{split}-squad.json", json.dumps({"data": squad_articles(split, 2)}))
    both = "train: train.csv\neval: dev.csv\n"
    write(folder / "classes.yaml", f"kind: classification\n{both}label_column: category\nmetric: macro_f1\n")
    write(folder / "sets.yaml", f"kind: multilabel\n{both}label_column: all\nlabel_separator: ;\n")
    write(
        folder / "scores.yaml",
        "kind: regression\ntrain: train.jsonl\neval: dev.jsonl\npair_column: other\nlabel_column: score\n",
    )
    write(folder / "words.yaml", "kind: tagging\nname: first words\ntrain: train.conll\neval: dev.conll\n")
    write(folder / "questions.yaml", "kind: questions\ntrain: train-squad.json\neval: dev-squad.json\n")
    return folder


@pytest.fixture(scope="session")
def trained(own: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model for each kind of task."""
    folder = tmp_path_factory.mktemp("trained")
    for task in ("classes", "sets", "scores", "words"):
        options = {"num_train_epochs": 8, "learning_rate": 6e-3}
        finetuned(model=bert, task=own / f"{task}.yaml", output_dir=folder / task, **options)
    return {path.name: path for path in folder.iterdir()}


def test_classes(trained: dict[str, Path], own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(trained["classes"])
    assert found["task"] == found["title"] == "classes"
    assert found["score"] == found["metrics"]["macro_f1"] > 90
    assert found["metrics"].keys() == {"accuracy", "macro_f1", "micro_f1", "matthews"}
    assert found["hyperparameters"]["metric"] == "macro_f1"
    assert found["per_label"].keys() == {"apple", "mango", "zebra"}
    assert found["per_label"]["mango"]["support"] == 7
    counts = np.array(found["confusion"]["counts"])
    assert counts.sum(axis=1).tolist() == [7, 7, 7]
    assert 100 * np.trace(counts) / 21 == pytest.approx(found["metrics"]["accuracy"])
    config = json.loads((trained["classes"] / "config.json").read_text())
    assert config["id2label"] == {"0": "apple", "1": "mango", "2": "zebra"}
    card = (trained["classes"] / "README.md").read_text()
    assert "| mango |" in card
    said = pipeline("text-classification", model=str(trained["classes"]))("kim dol bom")
    assert said[0]["label"] == "apple"
    assert main(["compare", str(trained["classes"])]) == 0
    assert "acc/macro F1/micro F1/Matthews" in capsys.readouterr().out


def test_several_labels(trained: dict[str, Path]) -> None:
    found = results(trained["sets"])
    assert found["score"] == found["metrics"]["micro_f1"] > 70
    assert found["confusion"] is None
    assert found["per_label"]["long"]["support"] == 10
    config = json.loads((trained["sets"] / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["threshold"] == found["metrics"]["threshold"]
    said = pipeline("text-classification", model=str(trained["sets"]), top_k=None)(["lun dol bom"])[0]
    model = AutoModelForSequenceClassification.from_pretrained(trained["sets"])
    inputs = AutoTokenizer.from_pretrained(trained["sets"])("lun dol bom", return_tensors="pt")
    probabilities = model(**inputs).logits[0].sigmoid().tolist()
    assert {one["label"]: one["score"] for one in said} == pytest.approx(
        {config["id2label"][str(number)]: of for number, of in enumerate(probabilities)}
    )
    assert "`threshold` in the config" in (trained["sets"] / "README.md").read_text()


def test_scores(trained: dict[str, Path]) -> None:
    found = results(trained["scores"])
    assert found["score"] == found["metrics"]["pearson"] > 80
    assert found["metrics"].keys() == {"pearson", "spearman", "mae"}
    assert found["per_label"] is found["confusion"] is None


def test_tags(trained: dict[str, Path], own: Path) -> None:
    found = results(trained["words"])
    assert found["task"] == "first words"
    assert found["score"] == found["metrics"]["f1"] > 90
    assert found["per_label"].keys() == {"X"}
    said = pipeline("token-classification", model=str(trained["words"]), aggregation_strategy="first")("bol dol lun")
    assert [(one["entity_group"], one["word"]) for one in said] == [("X", "bol"), ("X", "lun")]


def test_questions(own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spans = {"max_length": 96, "stride": 8, "num_train_epochs": 1}
    found = finetuned(model=bert, task=own / "questions.yaml", output_dir=tmp_path / "a", **spans)
    files = {"train_data": own / "train-squad.json", "eval_data": own / "dev-squad.json"}
    again = finetuned(model=bert, task="questions", output_dir=tmp_path / "b", **spans, **files)
    assert found["metrics"] == again["metrics"]
    assert found["rows"] == {"train": 6, "dev": 6}
    found = finetuned(
        model=bert, task="squad", train_data=own / "train-squad.json", dev_share=0.5, output_dir=tmp_path / "c", **spans
    )
    assert found["rows"] == {"train": 3, "dev": 3}
    assert "3 of 6 questions are held out and scored" in capsys.readouterr().err


def test_options_say_the_same_as_a_file(trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path) -> None:
    finetuned(
        model=bert,
        task="multilabel",
        train_data=own / "train.csv",
        eval_data=own / "dev.csv",
        label_column="all",
        label_separator=";",
        output_dir=tmp_path / "out",
        num_train_epochs=8,
        learning_rate=6e-3,
    )
    assert_same(tmp_path / "out", trained["sets"])


@pytest.mark.parametrize("task", ["classes", "sets", "scores", "words"])
def test_a_taught_model_resumes_exactly(
    trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    options: Json = {"model": bert, "num_hidden_layers": 1, "task": own / f"{task}.yaml", "teacher": trained[task]}
    options |= {"num_train_epochs": 1, "without_teacher_too": False}
    finetuned(**options, output_dir=tmp_path / "whole")
    found = results(tmp_path / "whole")
    assert set(found["teacher_on_labels"]) & {"accuracy", "mean_average_precision", "pearson"}
    losses = [line["loss_ce"] for line in found["log_history"] if "loss_ce" in line]
    assert len(losses) == 8
    assert min(losses) >= 0
    interrupt(monkeypatch, 3)
    assert main(flags(**options, output_dir=tmp_path / "resumed")) == 143
    finetuned(**options, output_dir=tmp_path / "resumed", resume_from_checkpoint="true")
    assert_same(tmp_path / "resumed", tmp_path / "whole")


def test_the_first_token_of_a_word_has_its_tag(
    own: Path, new_model: NewModel, new_job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer on bytes makes several tokens of a word, which are those of the word in a text."""
    roberta = new_model("roberta")
    job = new_job(model=str(roberta), task=str(own / "words.yaml"), max_length=24)
    text = job.data.train[0]
    row = job.train.__getitems__([0])
    words = AutoTokenizer.from_pretrained(roberta)(" " + " ".join(text["tokens"]), truncation=True, max_length=24)
    assert row["input_ids"][0, : len(words["input_ids"])].tolist() == words["input_ids"]
    labels = row["labels"][0]
    assert labels[0] == NO_TAG
    at = (labels != NO_TAG).nonzero()[:, 0].tolist()
    lengths = [len(word) + 1 for word in text["tokens"]]  # a letter is a token, and so is the blank before a word
    assert at == [place for place in np.cumsum([1, *lengths[:-1]]).tolist() if place < 23]
    assert labels[at].tolist() == text["tags"][: len(at)]
    assert "words have no token within --max_length 24; they are neither learned nor scored" in capsys.readouterr().err


def test_predictions_are_those_of_the_model(trained: dict[str, Path], own: Path, new_job: Callable[..., Job]) -> None:
    job = new_job(model=str(trained["words"]), task=str(own / "words.yaml"))
    model = AutoModelForTokenClassification.from_pretrained(trained["words"]).eval()
    rows = job.dev["dev"]
    logits = predict(model, rows, 5)["logits"]
    starts = np.concatenate([[0], np.cumsum(rows.lengths)])
    for number in (0, 7):
        ids = torch.from_numpy(rows.tokens["input_ids"][starts[number] : starts[number + 1]].astype(np.int64))[None]
        with torch.no_grad():
            alone = model(ids).logits[0].numpy()
        np.testing.assert_allclose(logits[starts[number] : starts[number + 1]], alone, atol=1e-5)


def test_evaluate_takes_a_file_that_declares_a_task(
    trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "evaluate",
        "--models",
        f"a={bert}",
        f"b={trained['words']}",
        "--suite",
        str(own / "classes.yaml"),
        str(own / "words.yaml"),
    ]
    argv += ["--seeds=2", "--use_cpu", "--num_train_epochs=1", "--per_device_train_batch_size=32"]
    argv += [f"--output_dir={tmp_path / 'results'}"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "classes" in out
    assert "first words" in out
    again = json.loads((tmp_path / "results" / "b" / "classes" / "seed-43.json").read_text())
    assert again["per_label"].keys() == {"apple", "mango", "zebra"}
    assert main(argv) == 0
    assert "[1/" not in capsys.readouterr().err  # all runs are done


@pytest.mark.parametrize("task", ["classes", "sets", "scores", "words"])
def test_an_export_is_scored_as_the_model_was(trained: dict[str, Path], own: Path, task: str) -> None:
    source = Source.open(str(trained[task]))
    scores = score_both(source, source, str(own / f"{task}.yaml"), None, None)
    found = results(trained[task])
    assert scores.before["score"] == pytest.approx(found["score"], abs=1e-4)
    assert scores.before == scores.after
    if task == "sets":  # whether a label is meant is an answer, and not only which label is likeliest
        assert (scores.agreement.same, scores.agreement.answers) == (1.0, 21 * 4)
    for name in scores.before.keys() & found["metrics"].keys():
        assert scores.before[name] == pytest.approx(found["metrics"][name], abs=1e-4)


REFUSED: dict[str, tuple[Json, str]] = {
    "no file": ({"task": "classification"}, "--train_data is missing"),
    "no such file": ({"task": "no.yaml"}, "There is no file no.yaml that declares a task"),
    "field": ({"task": "classes", "label_column": "x"}, "--label_column is 'x': it must stand in"),
    "data": ({"task": "classification", "task_data": "x"}, "--task_data is 'x': it is no option of classification"),
    "of another": ({"task": "sst2", "label_column": "x"}, "--label_column is 'x': it is no option of sst2"),
    "metric": ({"task": "classes", "metric": "macro_f2"}, "--metric is 'macro_f2': it must be one of accuracy,"),
    "metric of sst2": ({"task": "sst2", "metric": "f1"}, "--metric is 'f1': it is no option of sst2"),
    "pair": ({"task": "tagging", "pair_column": "x"}, "--pair_column is 'x': it is no option of tagging"),
    "separator": ({"task": "multilabel", "label_separator": ""}, "--label_separator is '': it must be at least one"),
    "columns": ({"task": "classification", "columns": "text,text"}, "it names text twice"),
    "share": ({"task": "classification", "dev_share": 1.5}, "--dev_share is 1.5: it must be a share"),
    "frozen": ({"task": "words", "freeze_encoder": True}, "--freeze_encoder is True: it is no option of"),
    "f1 of parts": (
        {"task": "parts", "metric": "f1"},
        "--metric is f1, which counts entities, but the tags of",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, said = REFUSED[case]
    write(own / "parts.conllu", "1\ta\ta\tDET" + "\t_" * 6 + "\n2\tb\tb\tNOUN" + "\t_" * 6 + "\n")
    write(own / "parts.yaml", "kind: tagging\ntrain: parts.conllu\neval: parts.conllu\n")
    if (own / f"{options['task']}.yaml").exists():
        options = options | {"task": own / f"{options['task']}.yaml"}
    assert main(flags(model=bert, output_dir=tmp_path / "out", **options)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "declares no task"),
        ("kind: classes\ntrain: a.csv", "kind is 'classes': it must be one of classification,"),
        ("kind: tagging", "has no field train"),
        ("kind: tagging\ntrain: a\nlabel_columns: x", "a field 'label_columns', which is none of"),
        ("kind: tagging\ntrain: a\npair_column: x", "pair_column is no field of tagging"),
        ("kind: regression\ntrain: a\nmetric: mae", "metric is 'mae': it must be one of pearson, spearman"),
        ("kind: regression\ntrain: a\ndev_share: 2", "dev_share is 2: it must be a share between 0 and 1"),
        ("kind: regression\ntrain: a\nname: sst2", "name is 'sst2', which is another task"),
        ("kind: regression\ntrain: 3", "train is 3: it must be a text"),
        ("kind: regression\ntrain: a\ntrain: b", "names train twice: leave one out"),
        ("kind: regression\ntrain: a\nname: a/b", "name is 'a/b', which cannot be the name of a folder"),
        (
            "kind: regression\n train: a",
            "task.yaml, line 2, cannot be read as YAML: mapping values are not allowed here",
        ),
        ("kind: regression\ntrain: a\ncolumns: a,a", "columns names one column twice"),
    ],
)
def test_a_file_that_declares_no_task(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path / "task.yaml", text)
    with pytest.raises(Exception, match=said) as error:
        FinetuneArguments(task=str(tmp_path / "task.yaml"), output_dir=str(tmp_path / "out"), use_cpu=True)
    assert type(error.value).__name__ == "PotstillError"


def test_a_teacher_of_several_labels_with_other_names_is_refused(
    trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = shutil.copytree(trained["sets"], tmp_path / "teacher")
    config: dict[str, Any] = json.loads((teacher / "config.json").read_text())
    for name, message in (("LABEL_", "its labels have other names"), ("other ", "lacks the task's label")):
        config["id2label"] = {str(number): f"{name}{number}" for number in range(4)}
        (teacher / "config.json").write_text(json.dumps(config))
        assert main(flags(model=bert, task=own / "sets.yaml", teacher=teacher, output_dir=tmp_path / "out")) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classes", "sets", "scores"])
def test_unlabelled_texts_and_weights_of_labels(
    task: str, trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "more.jsonl", [{"text": row["text"], "other": "bom"} for row in own_rows(30, 9)])
    options: Json = {"model": bert, "task": own / f"{task}.yaml", "teacher": trained[task], "max_train_samples": 12}
    options |= {"unlabelled": tmp_path / "more.jsonl", "unlabelled_ratio": 2, "num_train_epochs": 1}
    options |= {"class_weights": None if task == "scores" else "balanced"}
    found = finetuned(**options, output_dir=tmp_path / "out")
    assert found["unlabelled"]["texts"] == 30 - found["unlabelled"]["in_training_rows"]
    assert found["unlabelled"]["per_epoch"] == 24
    assert found["steps"] == 5  # of 8 rows
    assert found["without_unlabelled"]["steps"] == found["without_teacher"]["steps"] == 2
    assert ("balanced classes: the weights go from" in capsys.readouterr().err) == (task != "scores")


@pytest.mark.parametrize("task", ["classes", "sets", "scores"])
def test_the_teacher_alone_teaches_without_labelled_rows(
    task: str, trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher tells the labels, in its own order, and its soft targets alone decide what is learned."""
    write_lines(tmp_path / "more.jsonl", [{"text": row["text"], "other": "bom ?"} for row in own_rows(60, 9)])
    teacher = shutil.copytree(trained[task], tmp_path / "teacher")
    names = [f"LABEL_{number}" for number in range(3)]
    if task == "classes":  # labels that the teacher only numbers are numbers
        swap_labels(teacher, names)
        rows = [row | {"label": sorted(FIRST.values()).index(row["label"])} for row in own_rows(21, 1)]
        write_lines(tmp_path / "dev.jsonl", rows)
        said = f"kind: classification\neval: {tmp_path / 'dev.jsonl'}\n"
    else:
        lines = (own / f"{task}.yaml").read_text().splitlines()
        said = "\n".join(line.replace(": dev", f": {own}/dev") for line in lines if not line.startswith("train"))
    write(tmp_path / "task.yaml", said)
    options: Json = {"model": bert, "task": tmp_path / "task.yaml", "teacher": teacher, "alpha_ce": 1}
    options |= {"unlabelled": tmp_path / "more.jsonl", "num_train_epochs": 16, "learning_rate": 3e-3}
    found = finetuned(**options, output_dir=tmp_path / "out")
    printed = capsys.readouterr()
    count = found["unlabelled"]["texts"]
    assert f"({count} unlabelled texts, 21 scored)" in printed.out
    assert f"{count} of {count} unlabelled rows" in printed.err
    assert "the teacher on the scored labels: " in printed.err
    assert found["rows"] == {"train": 0, "dev": 21}
    assert found["steps"] == 16 * -(-count // 8)
    assert found["without_unlabelled"] is found["without_teacher"] is None
    assert {line["loss_task"] for line in found["log_history"] if "loss_task" in line} == {0.0}
    losses = [line["loss_ce"] for line in found["log_history"] if "loss_ce" in line]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) / 2
    assert found["score"] > 60
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", trained[task]))
    expected = {str(number): str(number) for number in range(3)} if task == "classes" else theirs["id2label"]
    assert config["id2label"] == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"by the soft targets of teacher (weight 1.0, temperature 2.0), of {count} unlabelled texts." in card
    if task == "classes":
        swap_labels(teacher, ["mango", "apple", "zebra"])
        write(tmp_path / "task.yaml", f"kind: classification\neval: {own / 'dev.csv'}\nlabel_column: category\n")
        other = finetuned(**options, output_dir=tmp_path / "other")
        assert other["per_label"].keys() == {"mango", "apple", "zebra"}
        assert other["teacher_on_labels"]["accuracy"] < 50


def swap_labels(folder: Path, names: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))


ALONE_REFUSED: dict[str, tuple[Json, str]] = {
    "nothing scored": ({"eval_data": None}, "--eval_data is missing: without --train_data the teacher alone teaches"),
    "ratio": ({"unlabelled_ratio": 2}, "--unlabelled_ratio is 2.0: it needs labelled rows to train on"),
    "weights": ({"class_weights": "balanced"}, "it needs labelled rows to train on: give --train_data"),
    "alpha": ({"alpha_task": 0.7}, "--alpha_task is 0.7: it weighs labels, but there is no --train_data"),
    "no teacher": (
        {"teacher": None, "unlabelled": None},
        "name a file to train on, or for texts --teacher and --unlabelled",
    ),
    "label": ({"teacher": "other"}, "which the teacher does not have"),
    "kind": ({"teacher": "sets"}, "gives a text any number of labels, but the task gives it one label"),
}


@pytest.mark.parametrize("case", ALONE_REFUSED)
def test_refused_without_labelled_rows(
    trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    write_lines(tmp_path / "more.jsonl", own_rows(5, 9))
    options: Json = {"teacher": "classes", "eval_data": own / "dev.csv", "unlabelled": tmp_path / "more.jsonl"}
    more, said = ALONE_REFUSED[case]
    options |= more
    if options["teacher"] == "other":
        options["teacher"] = shutil.copytree(trained["classes"], tmp_path / "teacher")
        swap_labels(options["teacher"], ["apple", "mango", "plum"])
        said = "7 rows with the label 'zebra', which the teacher does not have"
    elif options["teacher"]:
        options["teacher"] = trained[options["teacher"]]
    more = {"model": bert, "task": "classification", "label_column": "category", "output_dir": tmp_path / "out"}
    if case == "kind":
        write(tmp_path / "dev.csv", "text,category\nbol,apple\nkim,mango\n")
        config = json.loads((trained["sets"] / "config.json").read_text())
        assert config["problem_type"] == "multi_label_classification"
        options["eval_data"] = tmp_path / "dev.csv"
    assert main(flags(**options, **more)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_refitted_model_keeps_no_threshold(
    trained: dict[str, Path], own: Path, tmp_path: Path, new_job: Callable[..., Job]
) -> None:
    assert json.loads((trained["sets"] / "config.json").read_text())["threshold"] > 0
    job = new_job(model=str(trained["sets"]), task=str(own / "classes.yaml"))
    assert not hasattr(job.new_model().config, "threshold")


def test_balanced_tags(trained: dict[str, Path], own: Path, bert: Path, tmp_path: Path) -> None:
    options = {"model": bert, "teacher": trained["words"], "output_dir": tmp_path / "out"}
    assert finetuned(**options, task=own / "words.yaml", class_weights="balanced", num_train_epochs=1)["per_label"]


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["sets", "words"])
def test_recorded_steps_learn_what_others_learn(
    trained: dict[str, Path], own: Path, new_model: NewModel, tmp_path: Path, task: str
) -> None:
    model = new_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    options: Json = {"model": model, "task": own / f"{task}.yaml", "teacher": trained[task], "use_cpu": False}
    options |= {"bf16": False, "per_device_train_batch_size": 4, "without_teacher_too": False}

    def losses(cuda_graphs: bool) -> list[float]:
        found = finetuned(**options, output_dir=tmp_path / f"graphs-{cuda_graphs}", cuda_graphs=cuda_graphs)
        return [line["loss"] for line in found["log_history"] if "loss" in line]

    recorded = losses(True)
    assert len(recorded) > 15
    assert recorded == pytest.approx(losses(False), rel=1e-3, abs=1e-4)
