"""The score of a task before and after an export."""

from __future__ import annotations

from typing import Any

import numpy as np

from potstill.errors import PotstillError
from potstill.export.check import Runtime
from potstill.export.source import Source
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB
from potstill.tasks.load import load_split

ROWS_AT_A_TIME = 16
SENTENCE_TASKS = GLUE | {IMDB.name: IMDB}


def score_both(
    source: Source, exported: Runtime, task: str, check_data: str, max_samples: int | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Score a model and its export on the development sets of a sentence task.

    Args:
        source: a model for that task.
        exported: the same in another runtime.
        task: name of the task.
        check_data: folder of its data: see `load_split`.
        max_samples: rows of each set, from its beginning; all if None.

    Returns:
        The metrics of both, in percent; where there are several sets their mean.

    Raises:
        PotstillError: there is no such task, the model is not for it, or the data cannot be read.
    """
    if task not in SENTENCE_TASKS:
        raise PotstillError(f"There is no task {task!r} to check with; the tasks are {', '.join(SENTENCE_TASKS)}.")
    described = SENTENCE_TASKS[task]
    labels = source.model.config.num_labels
    if source.head.task != "text-classification" or labels != max(1, len(described.labels)):
        raise PotstillError(
            f"{described.title} is not what the model {source.name!r} is for: it is for {source.head.task}"
            f"{f' with {labels} labels' if source.head.task == 'text-classification' else ''}."
        )
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for name in described.dev:
        rows = load_split(described, name, check_data)
        rows = rows.select(range(min(max_samples or len(rows), len(rows))))
        logits: tuple[list[Any], list[Any]] = ([], [])
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            some = rows[start : start + ROWS_AT_A_TIME]
            inputs = source.tokenise(some["text"], some.get("pair"))
            for runtime, outputs in zip((source, exported), logits, strict=True):
                outputs.append(runtime.run(inputs)["logits"])
        for outputs, metrics in zip(logits, found, strict=True):
            values = np.concatenate(outputs) if outputs else np.empty((0, labels))
            predictions = values[:, 0] if described.is_regression else values.argmax(axis=1)
            metrics.append(described.score(predictions, np.asarray(rows["label"][:])))
    before, after = ({name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]} for metrics in found)
    return before, after
