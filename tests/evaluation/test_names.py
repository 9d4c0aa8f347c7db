"""Names of models and whatever else is in results stand in tables and notes as they are."""

from __future__ import annotations

import dataclasses
import json

import pytest
from evaluation_samples import Write
from hostile import BROKEN, NAMES, rendered

from potstill.errors import PotstillError
from potstill.evaluation.compare import compare
from potstill.evaluation.results import Plan, RunResult
from potstill.report.markdown import visible

SEEDS = (1, 2)


def folder_of(write: Write, model: str, other: str) -> str:
    """Two models on two tasks, with other in every field of the results that is free text."""

    def change(run: RunResult) -> RunResult:
        options = {"scheduler": f"{other}{run.model == model}", "batch": 16}
        return dataclasses.replace(
            run,
            title=f"{other} {run.task}",
            hardware=other,
            versions={other: other},
            teacher=other,
            hyperparameters=options,
            searched={other: [other]},
            seconds={other: 1.0, "rest": 2.0},
            metrics={other: {"score": 1.0}, "f1": 2.0},
            data_fingerprint=f"{other}{run.model == model}",
            model_fingerprint=f"{other}{run.seed}",
            date=f"{other[:5]}-2026-11-22",
        )

    scores = {(name, task): {seed: 50.0 + seed for seed in SEEDS} for name in (model, "b") for task in ("rte", "sst2")}
    return str(write(scores, change, tasks=["rte", "sst2", "qnli"], absent={"qnli": other}))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_models(write: Write, name: str) -> None:
    model = name.replace("/", "∕").replace("\\", "∖")
    folder = folder_of(write, model, name)
    page = rendered(compare(folder, "markdown"))
    scores, kept, metrics = page.tables
    assert [row[0] for row in scores] == ["", model, "b"]
    assert scores[0][2:] == [f"{name} rte", f"{name} sst2"]
    assert kept[1][0] == "b"
    assert metrics[0][1] == f"{name} rte ({name}/F1)"
    assert (page.html, page.links) == ([], [])
    assert f"Retention: percent of the score of {model}" in page.text
    assert f"8 runs on {name}, {name} {name}." in page.text
    text = compare(folder)
    assert sum(line.startswith(f" {model} ") for line in text.splitlines()) >= 2
    assert json.loads(compare(folder, "json"))["models"][model]


@pytest.mark.parametrize("other", BROKEN)
def test_what_would_break_a_line_or_a_terminal(write: Write, other: str) -> None:
    folder = folder_of(write, "a", other)
    page = rendered(compare(folder, "markdown"))
    assert page.tables[0][0][2] == f"{visible(other)} rte"
    assert (page.html, page.links, page.headings) == ([], [], [])
    text = compare(folder)
    assert f"{visible(other)} rte" in text
    assert set(text) - {"\n"} == {char for char in text if char.isprintable()}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_of_such_a_name_is_refused(name: str) -> None:
    with pytest.raises(PotstillError, match=r"cannot be the name of a folder: choose another\.$") as told:
        Plan([(name, "/a")], ["sst2"], {}, [1]).check()
    assert "\n" not in str(told.value)


def test_a_path_that_is_not_utf8_is_told(write: Write) -> None:
    with pytest.raises(PotstillError, match=r"plan\.json cannot be written: .*/models/\\udce9.* is not UTF-8"):
        write({("a", "sst2"): {1: 50.0}}, models=[("a", "/models/\udce9")])
