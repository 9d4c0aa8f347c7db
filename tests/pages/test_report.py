"""The verb `report`: what it finds in folders, what the page says of it, and that texts stay texts."""

import json
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation.evaluation_samples import run_result
from hostile import NAMES

from potstill.cli import main
from potstill.evaluation.results import Plan
from potstill.json_files import json_text
from potstill.pages.folders import Kind, find
from potstill.pages.recipes import differences
from potstill.pages.report import report
from potstill.report.markdown import visible

VERSIONS = {"potstill": "0.1.0", "torch": "2.13.0"}


class Read(HTMLParser):
    """What a browser makes of a page: its tags, what it would load, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{value}" for name, value in attributes if name in ("src", "href", "xlink:href", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.texts.append(data)


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Read]:
    def make(*folders: object, **options: Any) -> Read:
        file = report([str(folder) for folder in folders], output=str(tmp_path / "page.html"), **options)
        read = Read(file.read_text(encoding="utf-8"))
        assert all(one.startswith(("#", "data:image/png;base64,")) for one in read.loads)
        assert "script" not in read.tags
        return read

    return make


def trained(folder: Path, rng: random.Random, teacher: str | None = "bert", **recipe: Any) -> dict[str, Any]:
    """Write the folder of a training run, with random figures, and return the figures."""
    loss, accuracy, other = rng.uniform(1, 4), rng.uniform(0.2, 0.6), rng.uniform(0.6, 0.8)
    final: dict[str, float] = {"loss": loss, "accuracy": accuracy}
    if teacher:
        final |= {"kl": rng.uniform(0, 1), "teacher_loss": loss / 2, "teacher_accuracy": other}
    history = [
        {"step": step, "loss": rng.random(), "loss_ce": rng.random(), "learning_rate": 1e-4, "tokens_per_second": 9.0}
        for step in range(1, 5)
    ]
    results = {
        "held_out": {"initial": {"loss": 9.25, "accuracy": 0.01}, "final": final},
        "layer_search": None,
        "cost": {"steps": 4, "tokens": 4096, "seconds": 75.0, "processes": 2, "hardware": "an abacus"},
        "changed_on_resume": [],
        "parameters": 1234567,
        "versions": VERSIONS,
        "log_history": history,
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    options = ({"teacher": teacher} if teacher else {}) | {"output_dir": str(folder)} | recipe
    (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
    return final


def test_training_runs_side_by_side(page: Callable[..., Read], tmp_path: Path) -> None:
    rng = random.Random(0)
    finals = {
        name: trained(tmp_path / "runs" / name, rng, learning_rate=rate) for name, rate in (("a", 1e-4), ("b", 3e-4))
    }
    read = page(tmp_path / "runs")
    for name, final in finals.items():
        assert f"{name}, trained {final['loss']:.3f} {final['accuracy']:.1%} {final['kl']:.3f}" in read.text
        assert f"{name}: its teacher {final['loss'] / 2:.3f} {final['teacher_accuracy']:.1%}" in read.text
        assert f"{final['accuracy'] / final['teacher_accuracy']:.1%} of the teacher's accuracy" in read.text
    assert "learning_rate 0.0001 0.0003" in read.text  # the runs differ in this option alone
    assert "a 4 4,096 tokens 1:15 2 × an abacus potstill 0.1.0, torch 2.13.0" in read.text
    for title in ("Training loss", "Soft targets (KL · T²)", "Learning rate", "Speed"):
        assert title in read.texts


def test_a_run_without_teacher_or_held_out_text(page: Callable[..., Read], tmp_path: Path) -> None:
    trained(tmp_path / "a", random.Random(0), teacher=None)
    assert "its teacher" not in page(tmp_path / "a").text
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    results["held_out"] = {"initial": None, "final": None}
    results["log_history"] = []
    (tmp_path / "a" / "results.json").write_text(json.dumps(results))
    read = page(f"mine={tmp_path / 'a'}")
    assert "the corpora of these runs have no held-out block" in read.text
    assert "figure" not in read.tags
    assert "mine 4 4,096 tokens" in read.text


def evaluated(folder: Path, models: dict[str, list[float]]) -> Path:
    """Write an evaluation of models, given as name → score of each seed, with two labels."""
    seeds = [*range(len(next(iter(models.values()))))]
    Plan([(name, name) for name in models], ["sst2"], {}, seeds).save(folder)
    for model, scores in models.items():
        for seed in seeds:
            score = scores[seed]
            figures = {"precision": score, "recall": score, "f1": score, "support": 50}
            run = run_result(
                model,
                seed=seed,
                score=score,
                per_label={"negative": figures, "positive": figures | {"f1": score / 2}},
                confusion={"labels": ["negative", "positive"], "counts": [[40, 10], [20, 30]]},
            )
            run.save(folder)
    return folder


def test_scores_labels_and_confusions(page: Callable[..., Read], tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "e", {"teacher": [90.0, 91.0, 92.0], "student": [80.0, 81.0, 82.0]})
    read = page(folder)
    assert "student 81.0 80.0–82.0" in read.text
    assert f"student *{100 * 81 / 91:.1f}" in read.text  # retention, beyond the spread
    assert "negative 50 *-10.0" in read.text
    assert "positive 50 *-5.0" in read.text
    assert read.tags.count("img") == 2  # of the first seed of each model
    turned = page(folder, reference="student")
    assert "percent of the score of student" in turned.text


def test_the_labels_of_one_model(page: Callable[..., Read], tmp_path: Path) -> None:
    read = page(evaluated(tmp_path / "e", {"alone": [60.0]}))
    assert "positive 50 30.0 60.0 60.0 negative 50 60.0 60.0 60.0" in read.text  # the lowest F1 first


def test_finetuned_and_pruned_folders(page: Callable[..., Read], tmp_path: Path) -> None:
    points: list[dict[str, Any]] = [
        {"heads": heads, "heads_share": heads / 8, "neurons": 0, "neurons_share": 0.0, "score": 90.0 - heads}
        | {"metrics": {}, "parameters": 1000 - heads, "layer_parameters": 9, "milliseconds": None}
        for heads in (0, 2, 4)
    ]
    history = [{"step": step, "loss": 1 / step, "grad_norm": None} for step in (1, 2, 3)]
    for name, more in (("whole", {"log_history": history}), ("pruned", {"pruning": {"curve": points}})):
        (tmp_path / name).mkdir()
        record = run_result(name, score=86.0, **more).record
        (tmp_path / name / "results.json").write_text(json_text(record, "results.json"))
    read = page(tmp_path / "whole", f"small={tmp_path / 'pruned'}")
    assert "small, seed 1 4 (50%) 0 (0%) 90.00 86.00 1,000 996 –" in read.text
    assert "Score by heads removed" in read.texts
    assert "Score by neurons removed" not in read.texts
    assert "Training loss" in read.texts
    assert "whole – 1,000 of train, 100 of dev 2:00 an abacus torch 2.13.0" in read.text


def test_an_export(page: Callable[..., Read], tmp_path: Path) -> None:
    folder = tmp_path / "int8"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"\0" * 2_500_000)
    agreement = {"largest": 0.5, "spread": 5.0, "same": 0.9875, "answers": 480}
    scores = {"before": {"score": 91.25}, "after": {"score": 90.5}, "agreement": agreement, "bad_rows": 0}
    summary = {
        "format": "onnx-int8",
        "task": "text-classification",
        "file": "onnx/model.onnx",
        "quantization": "dynamic",
        "weight_bits": 8,
        "source": "student",
        "inputs": [],
        "outputs": [],
        "max_length": 128,
        "agreement": agreement,
        "scores": scores,
        "versions": VERSIONS,
    }
    (folder / "potstill_export.json").write_text(json.dumps(summary))
    assert "int8 onnx-int8 dynamic 2.5 MB student 98.75% 480 91.25 90.5 potstill 0.1.0" in page(folder).text
    (folder / "potstill_export.json").write_text(json.dumps(summary | {"agreement": "not on Linux", "scores": None}))
    assert "int8 onnx-int8 dynamic 2.5 MB student – – – –" in page(folder).text


@pytest.mark.parametrize("name", NAMES)
def test_texts_stay_texts(page: Callable[..., Read], tmp_path: Path, name: str) -> None:
    trained(tmp_path / "a", random.Random(0), teacher=name, corpus=name)
    if "/" in name:
        return
    trained(tmp_path / name, random.Random(1), teacher=name)
    read = page(tmp_path / "a", tmp_path / name, title=name)
    assert read.tags.count("h1") == 1
    assert visible(name) in read.texts
    assert "i" not in read.tags
    assert "b" not in read.tags


def test_masks_are_filled_by_student_and_teacher(
    page: Callable[..., Read], tmp_path: Path, teacher_folder: Path, make_teacher: Callable[..., Path]
) -> None:
    student = make_teacher(seed=3)
    trained(tmp_path / "s", random.Random(0), teacher=str(teacher_folder))
    for file in student.iterdir():
        (tmp_path / "s" / file.name).symlink_to(file)
    read = page(tmp_path / "s", texts=["bola {mask} dome", "no mask"])
    place = read.text.index("Filling the blank s: its teacher s bola {mask} dome")
    assert read.text[place:].split("At a glance")[0].count("%,") >= 4  # three answers of each
    for texts, message in ((["{mask} and {mask}"], "may have {mask} only once"), (["one"], "no model here can run")):
        with pytest.raises(Exception, match=message):
            page(tmp_path / "s", texts=texts)


def test_similarities_of_a_sentence_encoder(page: Callable[..., Read], tmp_path: Path, pooled_encoder: Path) -> None:
    from potstill.sentences.encoder import SentenceEncoder

    trained(tmp_path / "s", random.Random(0), teacher=None)
    for file in pooled_encoder.iterdir():
        (tmp_path / "s" / file.name).symlink_to(file)
    texts = ["bola dome", "kila", "bola kila"]
    vectors = SentenceEncoder.load(pooled_encoder).encode(texts).astype("float64")
    read = page(tmp_path / "s", texts=texts)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cosine = (
            vectors[one] @ vectors[other] / (vectors[one] @ vectors[one] * (vectors[other] @ vectors[other])) ** 0.5
        )
        assert f"{texts[one]} ↔ {texts[other]} {cosine:.3f}" in read.text


def test_folders_are_found_and_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    for where in ("one/student", "two/student", "two/.hidden"):
        trained(tmp_path / where, rng)
    (tmp_path / "two" / "notes.json").write_text("{}")
    (tmp_path / "two" / "train.json").write_text('[{"text": "a", "label": "b"}]')
    found = find([str(tmp_path / "one" / "student"), str(tmp_path / "two"), str(tmp_path / "two" / "student")])
    assert [(one.kind, one.name) for one in found] == [
        (Kind.TRAINING, "one/student"),
        (Kind.TRAINING, "two/student"),
    ]


def test_options_that_differ() -> None:
    recipes = [{"a": 1, "b": 2, "output_dir": "x"}, {"a": 1, "b": 3, "c": None, "output_dir": "y"}]
    assert differences(recipes) == ["b", "c"]


def test_what_cannot_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: object) -> str:
        assert main(["report", *map(str, words), "--output", str(tmp_path / "page.html")]) == 1
        assert not (tmp_path / "page.html").exists()
        return capsys.readouterr().err

    trained(tmp_path / "runs" / "a", random.Random(0))
    trained(tmp_path / "runs" / "b", random.Random(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    assert "There is no folder" in refused(tmp_path / "gone")
    assert "holds no results: name a folder that" in refused(tmp_path / "empty")
    assert "holds several results" in refused(f"name={tmp_path / 'runs'}")
    assert "--reference is for task models" in refused(tmp_path / "runs", "--reference", "a")
    for content in ('{"held_out": 3}', '{"held_out": {"final": {"loss": "x"}, "initial": null}}', "{", "[]"):
        (tmp_path / "damaged" / "results.json").write_text(content)
        assert "is damaged" in refused(tmp_path / "damaged")
