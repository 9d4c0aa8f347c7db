"""The verb `compare`: folders of results in, models side by side out."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any, Literal

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
) -> str:
    """Compare models by their results: medians over seeds, macro score, and what each keeps of a reference.

    Args:
        results: Folders that potstill evaluate or potstill finetune wrote. A folder of finetune is a model by the name
            of the folder, or by another as NAME=FOLDER; folders of one name are tasks and seeds of one model.
        format: How to print: text for a terminal, markdown, or json with the scores of every seed.
        reference: Name of the model that others are measured by; the first one evaluated if not given.
        output: File to write the same to.

    Returns:
        What is printed.

    Raises:
        PotstillError: there are no results, they are damaged, no model is called `reference`, or `output` cannot be
            written.
    """
    file = None if output is None else check_output_file(output, "--output")
    comparison = compare_runs(*read_folders([results] if isinstance(results, str) else results), reference)
    if format == "json":
        shown = json_text(_record(comparison), "The comparison")
    else:
        shown = (markdown if format == "markdown" else text)(grids(comparison), notes(comparison))
    if file is not None:
        write_text(file, shown + "\n")
    return shown


def _record(comparison: Comparison) -> dict[str, Any]:
    """Return all of a comparison as JSON has it; None where a figure is not defined."""
    models = {}
    reference = comparison.reference
    for model, path in comparison.plan.models:
        tasks = {}
        for task in comparison.plan.present:
            scores = comparison.scores.get((model, task))
            other = comparison.scores.get((reference, task)) if model != reference else None
            tasks[task] = _figures(scores, other) if scores else None
        macros = {
            column.title: _figures(column.of[model], column.of[reference] if model != reference else None)
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
    """Return a figure with those of its seeds and, but for the reference itself, how it stands to the reference.

    `value` is the median over the `n` seeds, of a task's scores and of macro scores alike.
    """
    by_seed = scores.by_seed
    beside: dict[str, Any] = {}
    if reference:
        beyond = beyond_spread(scores, reference)
        chance = None if beyond is None else chance_beyond_spread(len(by_seed), len(reference.by_seed))
        beside["retention"] = retention(scores.value, reference.value)
        beside |= {"beyond_spread": beyond, "chance_beyond_spread": chance}
    return {
        "value": scores.value,
        "min": min(by_seed.values()),
        "max": max(by_seed.values()),
        "n": len(by_seed),
        "by_seed": {str(seed): score for seed, score in by_seed.items()},
        **beside,
    }
