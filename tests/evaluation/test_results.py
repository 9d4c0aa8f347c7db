"""Results come back as they were written, and what is wrong with a folder of them is told by the file's name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import run_result

from potstill.errors import PotstillError
from potstill.evaluation.results import Plan, RunResult, load_results, run_path

PLAN = Plan([("teacher", "bert-base"), ("student (D)", "/s")], ["sst2", "rte"], {"rte": "no file"}, [2, 1])


def test_there_and_back(tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    full = run_result(
        "student (D)",
        seed=1,
        score=-3.5,
        metrics={"dev_matched": {"accuracy": 1, "score": 2.5}},
        teacher="bert-sst2",
        searched={"learning_rate": [1e-5, 2e-5]},
    )
    runs = [run_result(seed=2), run_result(seed=1), full]
    paths = [run.save(tmp_path) for run in reversed(runs)]
    assert paths[0] == tmp_path / "student (D)" / "sst2" / "seed-1.json" == run_path(tmp_path, "student (D)", "sst2", 1)
    assert load_results(tmp_path) == (PLAN, runs)  # in the order of the plan
    assert RunResult.load(paths[0]) == full
    assert [path.name for path in tmp_path.rglob("*.partial")] == []
    assert PLAN.present == ["sst2"]
    assert len(PLAN.runs()) == 4


def test_runs_that_are_not_planned_come_last_and_partial_files_not_at_all(tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    for run in (run_result(seed=9), run_result(seed=1)):
        run.save(tmp_path)
    (tmp_path / "teacher" / "sst2" / ".seed-2.json.partial").write_text("{")
    (tmp_path / "teacher" / "sst2" / "predictions.json").write_text("{")
    assert [run.seed for run in load_results(str(tmp_path))[1]] == [1, 9]


def test_results_of_before_bad_rows_were_counted_are_read(tmp_path: Path) -> None:
    path = run_result(bad_rows={"train": 3, "dev": 0}).save(tmp_path)
    assert RunResult.load(path).bad_rows == {"train": 3, "dev": 0}
    record = json.loads(path.read_text())
    del record["bad_rows"]
    path.write_text(json.dumps(record))
    assert RunResult.load(path).bad_rows is None


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"There is no folder .*nowhere"):
        load_results(tmp_path / "nowhere")
    with pytest.raises(PotstillError, match=r"is not a folder of results: it has no plan\.json"):
        load_results(tmp_path)


def without(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: {name: value for name, value in record.items() if name != field}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("score"), "is not the result of a run: it has no 'score'"),
        (without("format_version"), "is not the result of a run: it has no format_version"),
        (lambda record: [record], r"^The result of a run .*seed-1\.json is damaged: it holds no JSON object"),
        (lambda record: record | {"score": "high"}, "'score' is 'high'"),
        (lambda record: record | {"score": True}, "'score' is True"),
        (lambda record: record | {"score": float("nan")}, r"seed-1\.json is damaged: it is not JSON \(NaN"),
        (lambda record: record | {"score": 10**400}, "'score' is 1000"),
        (lambda record: record | {"metrics": {"f1": None}}, "'metrics' is {'f1': None}"),
        (lambda record: record | {"metrics": {"dev": {"f1": [1]}}}, "'metrics' is "),
        (lambda record: record | {"seed": 1.5}, "'seed' is 1.5"),
        (lambda record: record | {"teacher": 3}, "'teacher' is 3"),
        (lambda record: record | {"colour": "red"}, "unknown field 'colour'"),
        (lambda record: record | {"format_version": 99}, "format 99 .* upgrade potstill"),
        (lambda record: record | {"seed": 2}, r"seed 2, which belongs in .*seed-2\.json"),
        (lambda record: record | {"model": "other"}, "is the result of other on sst2"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    PLAN.save(tmp_path)
    path = run_result(seed=1).save(tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(PotstillError, match=said) as caught:
        load_results(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"score": 1', b"\xff\xfe", b"\0" * 99, b"[" * 10**5, b'["\\ud800"]'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    PLAN.save(tmp_path)
    path = run_result(seed=1).save(tmp_path)
    for file in (path, tmp_path / "plan.json"):
        file.write_bytes(content)
        with pytest.raises(PotstillError, match=f"{file.name} is damaged"):
            load_results(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("models", [["one", "/a"], ["One", "/b"]], "'one' occurs twice"),
        ("models", [["one"]], "pairs of a name and a path"),
        ("models", [], "at least one model"),
        ("models", [["a/b", "/a"]], "'a/b' cannot be the name of a folder"),
        ("models", [["..", "/a"]], "cannot be the name of a folder"),
        ("models", [["", "/a"]], "cannot be the name of a folder"),
        ("seeds", [1, 1], "seed 1 occurs twice"),
        ("seeds", [], "at least one seed"),
        ("tasks", ["sst2", "sst2"], "task 'sst2' occurs twice"),
        ("absent", ["rte"], "'absent' is"),
    ],
)
def test_a_damaged_plan(tmp_path: Path, field: str, value: Any, said: str) -> None:
    path = PLAN.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(PotstillError, match=said) as caught:
        Plan.load(tmp_path)
    assert str(path) in str(caught.value)


def test_nothing_that_could_not_be_read_is_written(tmp_path: Path) -> None:
    kept = run_result(seed=1).save(tmp_path)
    before = kept.read_text()
    for bad in ({"score": float("nan")}, {"metrics": {"f1": float("inf")}}, {"hyperparameters": {"a": float("nan")}}):
        with pytest.raises(PotstillError, match=r"seed-1\.json cannot be written"):
            run_result(seed=1, **bad).save(tmp_path)
    with pytest.raises(PotstillError, match=r"seed-1\.json cannot be written"):
        run_result(seed=1, hyperparameters={"path": Path()}).save(tmp_path)
    assert kept.read_text() == before
    with pytest.raises(PotstillError, match="at least one model"):
        dataclasses.replace(PLAN, models=[]).save(tmp_path)
    assert not (tmp_path / "plan.json").exists()
