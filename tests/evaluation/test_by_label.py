"""Which labels a student loses: medians over seeds, the largest loss first, in every format."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_samples import run_result
from test_compare import tables, words

from potstill import compare
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation.results import Plan
from potstill.evaluation.tables import WIDTH

NAMES = [f"intent {number}" for number in range(9)]


def write(folder: Path, models: dict[str, dict[str, list[float]]], supports: dict[str, int]) -> str:
    """Write an evaluation of models, given as label → F1 of each seed."""
    seeds = len(next(iter(next(iter(models.values())).values())))
    Plan([(name, name) for name in models], ["sst2"], {}, [*range(seeds)]).save(folder)
    for model, labels in models.items():
        for seed in range(seeds):
            per_label: dict[str, Any] = {
                label: {
                    "precision": f1s[seed] / 2,
                    "recall": f1s[seed] / 4,
                    "f1": f1s[seed],
                    "support": supports[label],
                }
                for label, f1s in labels.items()
            }
            run_result(model, "sst2", seed, 50.0, per_label=per_label).save(folder)
    return str(folder)


def test_the_largest_loss_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(np.random.randint(2**31))
    models = {name: {label: rng.uniform(20, 99, 3).tolist() for label in NAMES} for name in ("teacher", "student")}
    models["teacher"]["intent 4"], models["student"]["intent 4"] = [90.0, 91.0, 92.0], [1.0, 3.0, 2.0]
    folder = write(tmp_path / "results", models, {label: 5 + 10 * n for n, label in enumerate(NAMES)})
    medians = {model: {label: statistics.median(f1s) for label, f1s in of.items()} for model, of in models.items()}
    lost = {label: medians["student"][label] - medians["teacher"][label] for label in NAMES}
    order = sorted(lost, key=lost.__getitem__)
    assert order[0] == "intent 4"

    shown = compare(folder, "markdown", by="label")
    (table,) = tables(shown)
    assert list(table) == order
    for label, cells in table.items():
        mine, theirs = (medians[model][label] for model in ("student", "teacher"))
        assert cells["rows"] == str(5 + 10 * NAMES.index(label))
        assert cells["ΔF1"].lstrip("\\*") == f"{lost[label]:+.1f}"
        assert (cells["F1 (student)"], cells["F1 (teacher)"]) == (f"{mine:.1f}", f"{theirs:.1f}")
        assert (cells["precision (student)"], cells["recall (teacher)"]) == (f"{mine / 2:.1f}", f"{theirs / 4:.1f}")
    assert table["intent 4"]["ΔF1"].endswith("*-89.0")  # beyond the spread
    losing = sum(value < 0 for value in lost.values())
    assert f"SST-2, student: of 9 labels {losing} lose and {9 - losing} gain, " in words(shown)
    assert "3 labels have fewer than 30 rows" in words(shown)

    record = json.loads(compare(folder, "json", by="label"))
    assert [one["label"] for one in record["tables"][0]["labels"]] == order
    assert record["tables"][0]["labels"][0]["difference"] == pytest.approx(-89)
    assert record["tables"][0]["labels"][0]["beyond_spread"] is True
    assert main(["compare", folder, "--by", "label"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "intent" in line]
    assert [line.split("  ")[0].strip() for line in lines] == order
    assert max(map(len, lines)) <= WIDTH


def test_labels_that_only_one_model_has_come_last(tmp_path: Path) -> None:
    models = {"teacher": {"a": [90.0], "b": [80.0]}, "student": {"a": [95.0], "c": [70.0]}}
    shown = compare(write(tmp_path / "results", models, {"a": 50, "b": 50, "c": 50}), "markdown", by="label")
    (table,) = tables(shown)
    assert list(table) == ["a", "b", "c"]
    assert table["b"]["ΔF1"] == table["c"]["F1 (teacher)"] == "–"
    assert "student and teacher do not both have b, c." in words(shown)
    assert "with one seed nothing shows whether a difference is more than chance" in words(shown)


def test_runs_of_a_model_with_other_weights_are_told_first(tmp_path: Path) -> None:
    folders = []
    for model, seed, weights in (("teacher", 0, "a"), ("teacher", 1, "a"), ("student", 0, "b"), ("student", 1, "c")):
        figures = {"precision": 50.0, "recall": 50.0, "f1": 50.0, "support": 40}
        run = run_result(model, "sst2", seed, per_label={"x": figures}, model_fingerprint=64 * weights)
        (folder := tmp_path / f"{model}-{seed}").mkdir()
        run.save_as(folder / "results.json")
        folders.append(f"{model}={folder}")
    told = (
        "student did not begin with the same weights in all its runs (bbbbbbbb: SST-2, seed 0; cccccccc: SST-2, seed 1)"
    )
    first = json.loads(compare(folders, "json", by="label"))["notes"][0]
    assert first.startswith(f"NOT COMPARABLE: {told}, so that its figures mix several models")
    assert told in words(compare(folders, "markdown", by="label"))
    apart = [folder.replace("student=", f"student {number}=") for number, folder in enumerate(folders)]
    assert "NOT COMPARABLE" not in compare(apart, "markdown", by="label")


def test_nothing_to_compare(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"teacher": {"a": [90.0]}}, {"a": 50})
    with pytest.raises(PotstillError, match="there is only one: give the results of two models"):
        compare(one, by="label")
    older = write(tmp_path / "older", {"teacher": {"a": [90.0]}, "student": {"a": [80.0]}}, {"a": 50})
    run_result("student", "sst2", 0, 50.0).save(Path(older))
    with pytest.raises(PotstillError, match="No task has figures of its labels for both teacher and another model"):
        compare(older, by="label")
