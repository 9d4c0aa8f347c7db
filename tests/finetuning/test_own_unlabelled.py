"""Tasks on a user's own files with unlabelled texts: beside labelled rows, and without any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from finetuning_samples import FIRST, Json, finetuned, flags, own_rows, write, write_lines

from potstill.cli import main


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
