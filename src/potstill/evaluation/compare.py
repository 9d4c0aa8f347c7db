"""The verb `compare`: reads folders of results and returns tables of the models."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any, Literal

from potstill.evaluation.by_label import label_grid, label_record, label_tables
from potstill.evaluation.folders import read_folders
from potstill.evaluation.notes import notes
from potstill.evaluation.statistics import (
    Comparison,
    Scores,
    beyond_spread,
    chance_beyond_spread,
    compare_runs,
    retention,
)
from potstill.evaluation.tables import grids, markdown, text
from potstill.files import check_output_file, write_text
from potstill.json_files import json_text
from potstill.signatures import Positionals


def compare(
    results: Positionals,
    format: Literal["text", "markdown", "json"] = "text",
    reference: str | None = None,
    output: str | None = None,
    by: Literal["task", "label"] = "task",
) -> str:
    """Compare models by their results: medians over seeds, macro score, and retention of a reference's score.

    Args:
        results: Folders that potstill evaluate or potstill finetune wrote. A folder of finetune is one run of a model.
            The model has the folder's name, or NAME if given as NAME=FOLDER; runs with the same name belong together.
        format: Output format: text for a terminal, markdown, or json with the scores of every seed.
        reference: Name of the model that the others are compared with; the first model if not given.
        output: File to write the same output to.
        by: Compare scores by task, or by label: the F1, precision and recall of each label against the reference, the
            largest loss first.

    Returns:
        The text to print.

    Raises:
        PotstillError: there are no results, they are damaged, no model is called `reference`, `output` cannot be
            written, or no results have figures of labels though `by` asks for them.
    """
    file = None if output is None else check_output_file(output, "--output")
    comparison = compare_runs(*read_folders([results] if isinstance(results, str) else results), reference)
    if by == "label":
        tables = label_tables(comparison)
        record, shown = label_record(tables, comparison), [label_grid(one, comparison.reference) for one in tables]
        remarks = record["notes"]
    else:
        record, shown, remarks = _record(comparison), grids(comparison), notes(comparison)
    if format == "json":
        printed = json_text(record, "The comparison")
    else:
        printed = (markdown if format == "markdown" else text)(shown, remarks)
    if file is not None:
        write_text(file, printed + "\n")
    return printed


def _record(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as values for JSON; a figure that is not defined is None."""
    models = {}
    reference = comparison.reference
    for model, path in comparison.plan.models:
        tasks = {}
        for task in comparison.plan.present:
            scores = comparison.scores.get((model, task))
            other = comparison.scores.get((reference, task)) if model != reference else None
            tasks[task] = _figures(scores, other) if scores else None
        macros = {
            column.title: _figures(column.by_model[model], column.by_model[reference] if model != reference else None)
            for column in comparison.macros
        }
        models[model] = {"path": path, "tasks": tasks, "macros": macros}
    return {
        "reference": reference,
        "titles": comparison.titles,
        "models": models,
        "macro_tasks": {column.title: list(column.tasks) for column in comparison.macros},
        "plan": asdict(comparison.plan),
        "missing": [
            {"model": model, "task": task, "seeds": seeds}
            for model in comparison.models
            for task in comparison.plan.present
            if (seeds := comparison.missing(model, task))
        ],
        "notes": notes(comparison),
        "runs": [asdict(dataclasses.replace(run, log_history=None)) for run in comparison.runs],
    }


def _figures(scores: Scores, reference: Scores | None) -> dict[str, Any]:
    """Return the median of scores, their range, the score of each seed, and a comparison with the reference's scores.

    `value` is the median over the `n` seeds, for a task's scores and for macro scores. The comparison is left out if
    `reference` is None, as it is for the reference itself.
    """
    by_seed = scores.by_seed
    compared: dict[str, Any] = {}
    if reference:
        beyond = beyond_spread(scores, reference)
        chance = None if beyond is None else chance_beyond_spread(len(by_seed), len(reference.by_seed))
        compared["retention"] = retention(scores.value, reference.value)
        compared |= {"beyond_spread": beyond, "chance_beyond_spread": chance}
    return {
        "value": scores.value,
        "min": min(by_seed.values()),
        "max": max(by_seed.values()),
        "n": len(by_seed),
        "by_seed": {str(seed): score for seed, score in by_seed.items()},
        **compared,
    }
