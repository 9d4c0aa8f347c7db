"""Results that need no evaluation, data for one, and what its tests share."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from samples import WORDS

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation.run import PlannedRun
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.result import RunResult
from potstill.tasks.glue import GLUE

Json = dict[str, Any]
Write = Callable[..., Path]
"""The fixture `write`."""
Flags = Callable[..., list[str]]
"""The fixture `flags`."""
SIZES: Json = {"use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "seeds": 2}


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


def write_task(folder: Path, task: str, rows: int = 24) -> None:
    """SST-2, STS-B or RTE in short sentences, a word of which tells the label."""
    rng = random.Random(task)
    for split, count in (("train", rows), ("dev", 12)):
        lines = []
        for number in range(count):
            label = number % 2
            texts = [" ".join([rng.choice(WORDS), ("bol", "kim")[label], rng.choice(WORDS)]) for _ in "12"]
            lines.append(
                {
                    "sst2": {"sentence": texts[0], "label": label},
                    "rte": {"sentence1": texts[0], "sentence2": texts[1], "label": label},
                    "stsb": {"sentence1": texts[0], "sentence2": texts[1], "label": 5 * rng.random()},
                }[task]
            )
        file = folder / GLUE[task].title / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass(frozen=True)
class Disturbed(PlannedRun):
    """A run that does something else than fine-tuning, in the process that was to do it."""

    disturbance: str = ""

    def args(self) -> FinetuneArguments:
        """Disturb."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        written = self.file.with_suffix(".written")
        written.write_text(str(os.getpid()))
        written.rename(self.file.with_suffix(".pid"))  # whoever looks for it meanwhile finds it whole
        if self.disturbance == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.disturbance == "refuse":
            raise PotstillError("Its weights are broken.")
        if self.disturbance == "bug":
            raise ZeroDivisionError("a bug")
        if self.disturbance == "sleep":
            time.sleep(100)
        return super().args()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def comparable(printed: str) -> list[str]:
    """What is printed of results, but for when they were made and how long it took."""
    return [line for line in printed.splitlines() if " in total" not in line and " on " not in line]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], status: int = 1) -> str:
    """Run a command that must fail in one sentence, and return it."""
    capsys.readouterr()
    assert main(argv) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("potstill evaluate: ")
    return printed.err.removeprefix("potstill evaluate: ")


def scores(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): RunResult.load(p).score for p in folder.glob("*/*/seed-*.json")}
