"""Tasks on a user's own files: trained alone and by a teacher, resumed, loaded by others, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning_samples import (
    Json,
    finetuned,
    flags,
    results,
    write,
)
from test_finetune_resume import assert_same, interrupt
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from potstill.cli import main
from potstill.export.score import read_check_data, score_both
from potstill.export.source import Source
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.objective import NO_TAG
from potstill.finetuning.predict import predict

NewModel = Callable[..., Path]


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
    scores = score_both(source, source, read_check_data(source, str(own / f"{task}.yaml"), None, None))
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
    "share of a file": ({"task": "classes", "dev_share": 0.3}, "--dev_share is 0.3: it must stand in"),
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
