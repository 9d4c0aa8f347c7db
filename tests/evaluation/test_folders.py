"""`potstill compare` on folders that `finetune` wrote, on those of `evaluate`, and on both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import Write, run_result

from potstill import compare
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation.folders import read_folders
from potstill.finetuning.result import RESULTS

pytestmark = pytest.mark.usefixtures("signals_restored")

Finetuned = Callable[..., str]


@pytest.fixture
def finetuned(tmp_path: Path) -> Finetuned:
    """Write a folder as `finetune` does, as far as `compare` reads it."""

    def write(folder: str, task: str = "sst2", seed: int = 42, score: float = 80.0, **fields: Any) -> str:
        path = tmp_path / folder
        path.mkdir(parents=True)
        result = run_result("model", task, seed, score, log_history=[{"loss": 0.5, "step": 1}], **fields)
        (path / RESULTS).write_text(json.dumps(result.record))
        return str(path)

    return write


def figures(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Model → task → scores by seed."""
    return {
        model: {task: of and of["by_seed"] for task, of in found["tasks"].items()}
        for model, found in record["models"].items()
    }


def test_folders_are_models_by_their_names(finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [finetuned("teacher-sst2", score=90.0), finetuned("student-sst2", score=81.0)]
    assert main(["compare", *folders]) == 0
    text = capsys.readouterr().out
    assert [line.split() for line in text.splitlines() if line.startswith((" teacher", " student"))] == [
        ["teacher-sst2", "90.0"],
        ["student-sst2", "81.0"],
        ["student-sst2", "90.0"],  # retention
    ]
    record = json.loads(compare(folders, "json"))
    assert figures(record) == {"teacher-sst2": {"sst2": {"42": 90.0}}, "student-sst2": {"sst2": {"42": 81.0}}}
    assert record["models"]["student-sst2"]["tasks"]["sst2"]["retention"] == pytest.approx(90.0)
    assert record["reference"] == "teacher-sst2"
    assert record["missing"] == []
    assert all(run["log_history"] is None for run in record["runs"])  # it stays in the folder
    assert json.loads(compare(folders[0], "json"))["models"].keys() == {"teacher-sst2"}
    other = compare(folders, reference="student-sst2")
    assert "percent of the score of student-sst2" in other


def test_folders_of_one_name_are_tasks_and_seeds_of_a_model(finetuned: Finetuned) -> None:
    words = []
    for model, score in (("teacher", 90.0), ("student", 80.0)):
        for task in ("sst2", "rte"):
            for seed in (1, 2, 3):
                words.append(f"{model}={finetuned(f'{model}/{task}/{seed}', task, seed, score + seed)}")
    record = json.loads(compare(words, "json"))
    assert figures(record)["student"] == {task: {"1": 81.0, "2": 82.0, "3": 83.0} for task in ("sst2", "rte")}
    assert record["macro_tasks"] == {"GLUE macro": ["sst2", "rte"]}
    assert record["models"]["student"]["macros"]["GLUE macro"]["value"] == 82.0
    assert record["models"]["student"]["tasks"]["rte"]["beyond_spread"] is True
    # The same without names, where the folders have one.
    one, two = finetuned("a/pupil", "sst2"), finetuned("b/pupil", "rte")
    assert figures(json.loads(compare([one, two], "json"))) == {"pupil": {"sst2": {"42": 80.0}, "rte": {"42": 80.0}}}


def test_folders_of_both_verbs(write: Write, finetuned: Finetuned) -> None:
    scores = {("teacher", task): {1: 90.0, 2: 92.0} for task in ("sst2", "rte")}
    folder = str(write(scores, tasks=["sst2", "rte", "qnli"], absent={"qnli": "no file."}))
    mine = [f"mine={finetuned(f'{task}-{seed}', task, seed)}" for task in ("sst2", "rte") for seed in (1, 2)]
    record = json.loads(compare([folder, *mine], "json"))
    assert figures(record)["mine"] == {"sst2": {"1": 80.0, "2": 80.0}, "rte": {"1": 80.0, "2": 80.0}}
    assert record["plan"]["absent"] == {"qnli": "no file."}
    assert record["macro_tasks"] == {"GLUE macro": ["sst2", "rte"]}
    # What an evaluation has no data of may have been fine-tuned on elsewhere.
    record = json.loads(compare([folder, finetuned("own", "qnli", 1)], "json"))
    assert record["plan"]["absent"] == {}
    assert figures(record)["own"] == {"sst2": None, "rte": None, "qnli": {"1": 80.0}}
    assert {"model": "own", "task": "sst2", "seeds": [1, 2]} in record["missing"]
    assert "Left out" not in compare([folder, *mine])


def test_one_folder_of_an_evaluation_is_read_as_ever(write: Write) -> None:
    folder = write({("teacher", "sst2"): {1: 90.0, 2: 92.0}}, seeds=[2, 1, 3])
    plan, runs = read_folders([str(folder)])
    assert plan.seeds == [2, 1, 3]
    assert compare(str(folder)) == compare([str(folder)])
    assert [run.seed for run in runs] == [2, 1]


def test_runs_with_other_data_are_not_comparable(finetuned: Finetuned) -> None:
    words = [finetuned("a", data_fingerprint="one"), finetuned("b", data_fingerprint="two")]
    assert "NOT COMPARABLE: the runs of SST-2 did not read the same data" in compare(words)


def test_only_the_scored_rows_must_be_the_same(finetuned: Finetuned) -> None:
    few: dict[str, Any] = {"data_fingerprint": "1" * 64, "scored_fingerprint": "s", "rows": {"train": 770, "dev": 100}}
    text = " ".join(
        compare([finetuned("a", data_fingerprint="2" * 64, scored_fingerprint="s"), finetuned("b", **few)]).split()
    )
    assert "NOT COMPARABLE" not in text
    said = "SST-2: all are scored on the same rows, but are not trained on the same ones"
    assert f"{said} (1,000 rows, 22222222: a; 770 rows, 11111111: b)." in text
    text = " ".join(compare([finetuned("c", scored_fingerprint="t"), finetuned("d", **few)]).split())
    assert "NOT COMPARABLE: the runs of SST-2 were not scored on the same rows (t: c; s: d)." in text
    own = [finetuned(name, "classification", scored_fingerprint=name) for name in "xy"]
    text = " ".join(compare(own).split())
    assert "Two data sets have one name: declare each in a .yaml file with a name of its own." in text
    again = finetuned("z", "classification", 43, scored_fingerprint="z")
    with pytest.raises(
        PotstillError, match=r"both hold x on .*, but were scored on different rows, which have no common"
    ):
        compare([own[0], f"x={again}"])


def test_a_folder_with_a_sign_of_equality(finetuned: Finetuned) -> None:
    folder = finetuned("lr=3e-5")
    assert json.loads(compare(folder, "json"))["models"].keys() == {"lr=3e-5"}
    assert json.loads(compare(f"x={folder}", "json"))["models"].keys() == {"x"}


def test_what_cannot_be_compared_is_told(finetuned: Finetuned, write: Write, tmp_path: Path) -> None:
    one, two = finetuned("a/out"), finetuned("b/out")
    with pytest.raises(PotstillError, match=r"both hold out on SST-2 with seed 42: give each a name .* one=.*a/out"):
        compare([one, two])
    assert json.loads(compare([f"one={one}", two], "json"))["models"].keys() == {"one", "out"}
    with pytest.raises(PotstillError, match="both hold out on SST-2"):
        compare([one, one])
    evaluated = write({("teacher", "sst2"): {1: 90.0}})
    with pytest.raises(PotstillError, match="names its models itself: leave out t="):
        compare([f"t={evaluated}", one])
    with pytest.raises(PotstillError, match="both hold teacher on SST-2 with seed 1"):
        compare([str(evaluated), f"teacher={finetuned('again', seed=1)}"])
    for word in ("=out", "name="):
        with pytest.raises(PotstillError, match="is not NAME=FOLDER"):
            compare(word)
    with pytest.raises(PotstillError, match=r"There is no folder .*nowhere: name one that potstill"):
        compare([one, str(tmp_path / "nowhere")])
    with pytest.raises(PotstillError, match=r"is not a folder of results: it has no plan\.json, .* no results\.json"):
        compare([one, str(tmp_path)])
    with pytest.raises(PotstillError, match="RESULTS is missing"):
        compare([])


def test_runs_of_before_some_facts_were_recorded(finetuned: Finetuned) -> None:
    words = [finetuned("a", model_fingerprint=None, date=None), finetuned("b", model_fingerprint=None)]
    text = compare(words)
    assert "NOT COMPARABLE" not in text
    assert "2026-11-22, " in text
    assert "date not recorded, " in compare(words[0])


def test_names_in_cells_are_those_of_the_command_line(finetuned: Finetuned) -> None:
    folder = finetuned("plain")
    plan, (run,) = read_folders([f"new name={folder}"])
    assert plan.models == [("new name", "/models/model")]
    assert run == dataclasses.replace(run, model="new name")
