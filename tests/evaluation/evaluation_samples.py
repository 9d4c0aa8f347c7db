"""Results that need no evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.evaluation.results import RunResult
from potstill.tasks.glue import GLUE

Write = Callable[..., Path]
"""The fixture `write`."""


def run_result(
    model: str = "teacher", task: str = "sst2", seed: int = 1, score: float = 90.0, **fields: Any
) -> RunResult:
    """A run of which only what is given matters."""
    values: dict[str, Any] = {
        "model_path": f"/models/{model}",
        "title": GLUE[task].title if task in GLUE else task.upper(),
        "suite": "glue" if task in GLUE else task,
        "metrics": {"accuracy": score, "score": score},
        "teacher": None,
        "hyperparameters": {"learning_rate": 2e-5, "num_train_epochs": 3, "seed": seed},
        "versions": {"torch": "2.13.0"},
        "hardware": "an abacus",
        "seconds": {"train": 100.0, "evaluate": 20.0},
        "rows": {"train": 1000, "dev": 100},
        "data_fingerprint": f"data of {task}",
        "model_fingerprint": f"weights of {model}",
        "date": "2026-11-22T10:00:00+00:00",
    }
    return RunResult(model=model, task=task, seed=seed, score=score, **values | fields)
