"""One schema for what `finetune` and `evaluate` write; and what either wrote before there was one is read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetuning_samples import finetuned

from potstill.errors import PotstillError
from potstill.evaluation.run import PlannedRun, do
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.result import FORMAT_VERSION, RESULTS, RunResult
from potstill.finetuning.trainer import hyperparameters

OLD: dict[str, Any] = {
    "task": "sst2",
    "score": 91.5,
    "metrics": {"accuracy": 91.5},
    "seconds": {"preparing": 0.1, "training": 12.5, "scoring": 1.0},
    "steps": 30,
    "rows_per_second": 96.0,
    "teacher": "../teacher-sst2",
    "teacher_on_labels": {"accuracy": 99.0, "by_chance": 50.0},
    "without_teacher": {"score": 90.0, "metrics": {"accuracy": 90.0}, "seconds": {}, "steps": 30},
    "seed": 7,
    "rows": {"train": 400, "dev": 100},
    "bad_rows": {"train": 0, "dev": 0},
    "bad_answers": 0,
    "data_fingerprint": "d" * 64,
    "hardware": "an abacus",
    "versions": {"torch": "2.13.0"},
    "log_history": [{"loss": 0.7, "grad_norm": math.inf, "step": 1}],
}
"""As `finetune` wrote it before its results had a version."""
RECIPE = {"model": "models/student", "task": "sst2", "learning_rate": 3e-5, "alpha_ce": 0.5, "stride": 128, "seed": 7}


def write_old(folder: Path, record: Any = OLD, recipe: Any = RECIPE) -> Path:
    (folder / RESULTS).write_text(json.dumps(record))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_both_verbs_write_the_same_fields(bert: Path, glue: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": str(bert),
        "task": "sst2",
        "task_data": str(glue),
        "use_cpu": True,
        "max_steps": 2,
    }
    told = finetuned(**options, output_dir=tmp_path / "out")
    args = {"output_dir": str(tmp_path / "run"), "learning_rate": 1e-3, "per_device_train_batch_size": 8}
    done = do(PlannedRun("student", options | args, tmp_path / "seed-42.json"))
    kept = json.loads((tmp_path / "seed-42.json").read_text())
    fields = ["format_version", *(field.name for field in dataclasses.fields(RunResult))]
    assert [*told] == [*kept] == fields
    assert told["format_version"] == kept["format_version"] == FORMAT_VERSION
    mine = RunResult.of_folder(tmp_path / "out")
    assert RunResult.load(tmp_path / "seed-42.json") == done
    assert mine.log_history
    assert done.log_history is None
    # The same run by either verb is the same result.
    same = {"model": "", "seconds": {}, "rows_per_second": 0.0, "date": "", "log_history": None}
    same["hyperparameters"] = {}
    assert dataclasses.replace(mine, **same) == dataclasses.replace(done, **same)
    assert mine.hyperparameters.keys() == done.hyperparameters.keys()
    assert (mine.model, mine.model_path, mine.title, mine.suite) == ("bert", str(bert), "SST-2", "glue")
    assert mine.hyperparameters == hyperparameters(FinetuneArguments(**_given(mine), **options, output_dir="-"))


def _given(result: RunResult) -> dict[str, Any]:
    names = ("learning_rate", "per_device_train_batch_size", "num_train_epochs")
    return {name: result.hyperparameters[name] for name in names}


def test_what_finetune_wrote_before_is_read(tmp_path: Path) -> None:
    found = RunResult.of_folder(write_old(tmp_path))
    later = {field.name: None for field in dataclasses.fields(RunResult) if field.default is None}
    expected = (
        later
        | OLD
        | {
            "model": "student",
            "model_path": "models/student",
            "title": "SST-2",
            "suite": "glue",
            "hyperparameters": {"learning_rate": 3e-5, "alpha_ce": 0.5},
            "model_fingerprint": None,
            "date": None,
            "log_history": [{"loss": 0.7, "grad_norm": None, "step": 1}],
        }
    )
    assert dataclasses.asdict(found) == expected
    (tmp_path / "recipe.yaml").unlink()
    assert RunResult.of_folder(tmp_path).hyperparameters == {}
    assert RunResult.of_folder(tmp_path).model == tmp_path.name
    (tmp_path / "recipe.yaml").write_text("a: [")
    assert RunResult.of_folder(tmp_path).score == 91.5


def test_an_old_result_of_a_task_that_is_not_declared_here(tmp_path: Path) -> None:
    found = RunResult.of_folder(write_old(tmp_path, OLD | {"task": "own"}))
    assert (found.title, found.suite) == ("own", "own")


def test_what_evaluate_wrote_before_is_read(tmp_path: Path) -> None:
    whole = dataclasses.replace(_result(), date="2026-11-22")
    later = ("bad_answers", "steps", "rows_per_second", "teacher_on_labels", "without_teacher", "log_history")
    later += ("changed_on_resume",)
    record = {name: value for name, value in dataclasses.asdict(whole).items() if name not in later}
    (tmp_path / "seed-7.json").write_text(json.dumps({"format_version": 1} | record))
    found = RunResult.load(tmp_path / "seed-7.json")
    assert found == whole
    assert (found.steps, found.log_history) == (None, None)


def _result(**fields: Any) -> RunResult:
    names = {field.name for field in dataclasses.fields(RunResult)}
    values = {name: value for name, value in OLD.items() if name in names}
    values |= {"model": "s", "model_path": "s", "title": "SST-2", "suite": "glue", "hyperparameters": {}}
    values |= {"model_fingerprint": "w", "date": None}
    for name in ("steps", "rows_per_second", "teacher_on_labels", "without_teacher", "bad_answers", "log_history"):
        values[name] = None
    return RunResult(**values | fields)


def test_numbers_that_json_does_not_have_cost_nobody_a_model(tmp_path: Path) -> None:
    record = _result(log_history=[{"grad_norm": math.nan, "loss": 1.0}]).record
    assert record["log_history"] == [{"grad_norm": None, "loss": 1.0}]
    (tmp_path / RESULTS).write_text(json.dumps(record, allow_nan=False))
    assert RunResult.of_folder(tmp_path).score == 91.5
    # A score that is no number is no result.
    (tmp_path / RESULTS).write_text(json.dumps(_result(score=math.nan).record, allow_nan=False))
    with pytest.raises(PotstillError, match=r"results\.json is not the result of a run: 'score' is None"):
        RunResult.of_folder(tmp_path)
    with pytest.raises(PotstillError, match="cannot be written"):
        _result(score=math.nan).save_as(tmp_path / "seed-7.json")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"held_out": {}, "cost": {}}, "is of a model that was distilled or pre-trained, and has no score of a task"),
        ({"accuracy": 5}, "is not the result of a run: it has no format_version"),
        ({"task": "sst2"}, "is not the result of a run: it has no 'seed'"),
        (OLD | {"score": "high"}, "'score' is 'high'"),
        (OLD | {"colour": "red"}, "unknown field 'colour'"),
        (OLD | {"format_version": 99}, "format 99 .* upgrade potstill"),
        ([OLD], "is damaged: it holds no JSON object; fine-tune the model again"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(PotstillError, match=said) as caught:
        RunResult.of_folder(write_old(tmp_path, record))
    assert str(tmp_path / RESULTS) in str(caught.value)
