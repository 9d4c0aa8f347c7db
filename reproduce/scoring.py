"""Scores of models on tasks by `potstill evaluate`, and their summary: medians, ranges, retention."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.evaluation.compare import compare
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB
from potstill.tasks.load import TaskDataAbsentError, find_split
from potstill.tasks.sentence import SentenceTask
from potstill.tasks.squad import find_squad
from reproduce.common import Place
from reproduce.runs import Job, run_job

KEPT = ("value", "min", "max", "n", "by_seed", "retention", "beyond_spread", "chance_beyond_spread")


def check_tasks(seeds: int, glue: Path | None, imdb: Path | None = None, squad: Path | None = None) -> None:
    """Check before the trainings the input that `potstill evaluate` needs after them.

    Args:
        seeds: number of seeds.
        glue: folder of GLUE's data; None for the data on the hub.
        imdb: folder of IMDb's data; None for the data on the hub.
        squad: folder or file in SQuAD's format; None for the data on the hub.

    Raises:
        PotstillError: there are fewer than two seeds, or a folder has no data for its task.
    """
    if seeds < 2:
        raise PotstillError(f"--seeds is {seeds}: medians and their spread need at least 2, better 5.")
    if glue is not None and not any(_has(task, glue) for task in GLUE.values()):
        raise PotstillError(
            f"--task_data {glue} has no data of any GLUE task: there is no CoLA/train.tsv or similar file."
        )
    if imdb is not None:
        find_split(IMDB, "train", imdb, "--imdb")
    if squad is not None:
        find_squad(squad, "train")


def _has(task: SentenceTask, folder: Path) -> bool:
    try:
        find_split(task, "train", folder)
    except TaskDataAbsentError:
        return False
    return True


def scored(
    name: str, place: Place, models: dict[str, Path], suite: list[str], task_data: Path | None, **options: Any
) -> dict[str, Any]:
    """Fine-tune models on tasks with several seeds, and return the comparison with the first of them.

    Args:
        name: name of the run.
        place: folders and GPUs of the script.
        models: name → folder; the first is the reference.
        suite: option of `potstill evaluate`.
        task_data: folder or file; None for the data on the hub.
        options: other options of `potstill evaluate`.
    """
    for model, folder in models.items():
        if not folder.is_dir():
            raise PotstillError(f"There is no folder {folder} for the model {model}: run the earlier scripts first.")
    common = {
        "models": [f"{model}={folder}" for model, folder in models.items()],
        "suite": suite,
        "task_data": task_data,
        "report_to": "none",
    }
    done = run_job(Job(name, "evaluate", common | options, distributed=False, more=place.more), place)
    return comparison(done.folder) | {"cost": done.cost}


def comparison(folder: Path) -> dict[str, Any]:
    """Return the comparison by `potstill compare` of a folder of results, without single runs and local paths."""
    compared = json.loads(compare(str(folder), format="json"))
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in compared["runs"]:
        runs.setdefault((run["model"], run["task"]), []).append(run)
    limits = {run["hyperparameters"].get("max_train_samples") for run in compared["runs"]}
    models = {}
    for model, found in compared["models"].items():
        tasks = {task: _kept(figures) for task, figures in found["tasks"].items() if figures}
        for task, figures in tasks.items():
            task_runs = runs[model, task]
            figures["learning_rate"] = sorted({run["hyperparameters"]["learning_rate"] for run in task_runs})
            figures["metrics"] = _medians([run["metrics"] for run in task_runs])
        models[model] = {
            "tasks": tasks,
            "macros": {title: _kept(figures) for title, figures in found["macros"].items()},
        }
    return {
        "reference": compared["reference"],
        "titles": compared["titles"],
        "models": models,
        "macro_tasks": compared["macro_tasks"],
        "seeds": compared["plan"]["seeds"],
        "absent": list(compared["plan"]["absent"]),
        "missing": compared["missing"],
        "searched": sorted(
            {rate for run in compared["runs"] for rate in (run["searched"] or {}).get("learning_rate", [])}
        ),
        "epochs": {run["task"]: run["hyperparameters"]["num_train_epochs"] for run in compared["runs"]},
        "rows": {run["task"]: run["rows"] for run in compared["runs"]},
        "max_train_samples": max(filter(None, limits), default=None),
    }


def _kept(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in KEPT if name in figures}


def _medians(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median over seeds of each metric that is a number."""
    return {
        name: statistics.median(of[name] for of in metrics)
        for name, value in metrics[0].items()
        if isinstance(value, int | float) and all(name in of for of in metrics)
    }
