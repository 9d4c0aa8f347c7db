"""Folders of results, written as an evaluation would, and what evaluations are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import SIZES, Flags, Json, Write, run_result, write_task

from potstill.evaluation import pool
from potstill.evaluation import run as run_module
from potstill.evaluation.results import Plan, RunResult
from potstill.evaluation.run import PlannedRun, clear_cache
from potstill.finetuning.trainer import hyperparameters
from potstill.training.run_record import model_fingerprint


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


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    clear_cache()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 and STS-B."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("sst2", "stsb"):
        write_task(folder, task)
    return folder


@pytest.fixture(scope="session")
def models(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {"teacher": make_teacher(), "student": make_teacher(1, num_hidden_layers=2)}


@pytest.fixture
def flags(models: dict[str, Path], data: Path, tmp_path: Path) -> Flags:
    """The command line of an evaluation; None leaves an option out."""

    def make(**options: Any) -> list[str]:
        values: Json = {
            "models": models,
            "suite": "glue:sst2,stsb",
            "task_data": data,
            "output_dir": tmp_path / "results",
        }
        words = ["evaluate"]
        for name, value in (values | SIZES | options).items():
            if name == "models" and isinstance(value, dict):
                words += ["--models", *(f"{model}={path}" for model, path in value.items())]
            elif isinstance(value, list):
                words += [f"--{name}", *map(str, value)]
            elif value is not None:
                words.append(f"--{name}={value}")
        return words

    return make


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that cost nothing; the list tells which there were. The score is by seed and learning rate."""
    done: list[str] = []

    def pretend(work: PlannedRun) -> RunResult:
        args = work.args()
        done.append(str(work))
        rate = args.learning_rate or 0.0
        result = run_result(
            work.model,
            args.task or "",
            args.seed,
            score=60 - 1e5 * abs(rate - 5e-5) + (args.seed * 7) % 5,
            hyperparameters=hyperparameters(args),
            data_fingerprint=run_module.data_fingerprint(run_module.task_data(args)),
            model_fingerprint=model_fingerprint(args.model or ""),
            teacher=work.teacher_name,
            searched=work.searched,
        )
        if work.keep is not None:
            work.keep.mkdir(parents=True)
        result.save_as(work.file)
        return result

    monkeypatch.setattr(pool, "do", pretend)
    return done
