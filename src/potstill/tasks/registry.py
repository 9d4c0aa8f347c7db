"""All tasks. A new task needs one entry here, and may need a file next to this one. No other place lists tasks."""

from __future__ import annotations

import difflib

from potstill.errors import PotstillError
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB
from potstill.tasks.metrics import METRICS
from potstill.tasks.questions import SQUAD, SQUAD_V2
from potstill.tasks.rerank import RERANK
from potstill.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE.values(), IMDB, SQUAD, SQUAD_V2, RERANK)}
"""Name → declaration, in the order of help and messages."""


def find_task(name: str) -> Task:
    """Return the declaration of a task.

    Raises:
        PotstillError: there is no such task; the message names the nearest one.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.casefold(), TASKS, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise PotstillError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}{hint}.")
    return TASKS[name]


def title_of(name: str) -> str:
    """Return the title of a task in papers; its name if it is not declared here, as in results of another version."""
    return TASKS[name].title if name in TASKS else name


def suites() -> dict[str, tuple[str, ...]]:
    """Return suite → names of its tasks, as the tasks declare them."""
    found: dict[str, tuple[str, ...]] = {}
    for name, task in TASKS.items():
        found[task.suite_name] = (*found.get(task.suite_name, ()), name)
    return found


def short_names(task: str) -> dict[str, str]:
    """Return metric or split → its name in tables: the names that the task declares, and the metrics of all tasks.

    Results of another version may have a task that is not declared here, or metrics that the task no longer has.
    """
    declared = TASKS[task].short_names if task in TASKS else {}
    return {name: metric.short for name, metric in METRICS.items()} | declared
