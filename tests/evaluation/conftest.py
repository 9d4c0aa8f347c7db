"""Folders of results, written as an evaluation would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import Write, run_result

from potstill.evaluation.results import Plan, RunResult


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder of results from {(model, task): scores by seed}; all models, tasks and seeds named are planned."""

    def write_results(
        scores: Mapping[tuple[str, str], Mapping[int, float]],
        change: Callable[[RunResult], RunResult] = lambda run: run,
        **plan: Any,
    ) -> Path:
        folder = tmp_path / "results"
        models = list(dict.fromkeys(model for model, _ in scores))
        fields: dict[str, Any] = {
            "models": [(model, f"/models/{model}") for model in models],
            "tasks": list(dict.fromkeys(task for _, task in scores)),
            "absent": {},
            "seeds": sorted({seed for by_seed in scores.values() for seed in by_seed}),
        }
        Plan(**fields | plan).save(folder)
        for (model, task), by_seed in scores.items():
            for seed, score in by_seed.items():
                change(run_result(model, task, seed, score)).save(folder)
        return folder

    return write_results
