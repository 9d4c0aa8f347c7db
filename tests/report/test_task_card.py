"""The card of a fine-tuned model: what was measured, and names as they are."""

from __future__ import annotations

import math

import pytest
from hostile import BROKEN, NAMES, front_matter, rendered

from potstill.report.markdown import visible
from potstill.report.task_card import task_card
from potstill.tasks.registry import TASKS

RECIPE = {"model": "me/student", "task": "sst2", "learning_rate": 3e-5}
RESULTS = {
    "seed": 42,
    "steps": 1234,
    "seconds": {"training": 56.0},
    "hardware": "an abacus",
    "versions": {"torch": "9.9"},
    "rows": {"train": 67349, "dev": 872},
    "metrics": {"accuracy": 91.5, "dev_matched": {"f1": 84.25}},
    "without_teacher": None,
}


def test_every_measured_figure_is_there() -> None:
    header, rest = front_matter(task_card(RECIPE, RESULTS, TASKS["sst2"], frozen=False))
    assert header["base_model"] == "me/student"
    page = rendered(rest)
    assert page.headings[0] == "student on sst2"
    assert page.tables[0] == [["figure", "value"], ["accuracy", "91.50"], ["dev_matched f1", "84.25"]]
    assert "One run, seed 42; rows: 67,349 of train, 872 of dev." in page.text
    assert "1,234 steps, 56 seconds on an abacus; torch 9.9." in page.text


@pytest.mark.parametrize("name", [*NAMES, *BROKEN])
def test_names_are_shown_as_they_are(name: str) -> None:
    seen = visible(name)
    last = seen.rpartition("/")[2]
    taught = {"alpha_task": 0.5, "alpha_ce": 0.5, "alpha_cos": 0, "temperature": 2.0}
    recipe = RECIPE | taught | {"model": f"./models/{name}", "task": name, "teacher": f"../{name}", name: name}
    results = RESULTS | {
        "hardware": name,
        "versions": {name: name},
        "rows": {name: 5},
        "metrics": {name: 91.5, "labels": {name: 84.25}},
        "without_teacher": {"metrics": {name: 90.5, "labels": {name: 83.25}}},
    }
    header, rest = front_matter(task_card(recipe, results, TASKS["sst2"], frozen=False))
    assert header.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    page = rendered(rest)
    assert (page.html, page.links) == ([], [])
    assert page.headings == [f"{last} on {seen}", "Scores", "Recipe", "Cost"]
    scores, options = page.tables
    assert scores[1:] == [[seen, "91.50", "90.50"], [f"labels {seen}", "84.25", "83.25"]]
    assert [seen, seen] in options
    assert f"the soft targets of {last} (weight 0.5" in page.text
    assert f"rows: 5 of {seen}." in page.text
    assert f"on {seen}; {seen} {seen}." in page.text


def test_figures_that_are_no_numbers_are_told() -> None:
    beside = {"metrics": {"accuracy": 90.0, "dev_matched": {"f1": math.inf}}}
    results = RESULTS | {"metrics": {"accuracy": math.nan, "dev_matched": {"f1": 84.25}}, "without_teacher": beside}
    page = rendered(front_matter(task_card(RECIPE, results, TASKS["sst2"], frozen=False))[1])
    assert page.tables[0][1:] == [["accuracy", "–", "90.00"], ["dev_matched f1", "84.25", "–"]]
    assert (
        "A dash means not finite (NaN or infinity): with the teacher accuracy, same run without it dev_matched f1."
        in page.text
    )
