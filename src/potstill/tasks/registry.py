"""All tasks. A new task needs one entry here, and may need a file next to this one. No other place lists tasks.

Tasks on a user's own files are in `potstill.tasks.own.OWN`, because each of their kinds has many tasks.
"""

from __future__ import annotations

import difflib

from potstill.errors import PotstillError
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB
from potstill.tasks.metrics import METRICS, UNITS
from potstill.tasks.own import OWN, is_task_file, read_task
from potstill.tasks.questions import SQUAD, SQUAD_V2
from potstill.tasks.rerank import RERANK
from potstill.tasks.task import Task

TASKS: dict[str, Task] = {one.name: one for one in (*GLUE.values(), IMDB, SQUAD, SQUAD_V2, RERANK, *OWN.values())}
"""Name → declaration, in the order of help and messages."""


def find_task(name: str) -> Task:
    """Return the declaration of a task.

    Args:
        name: its name, or the path of a `.yaml` file that declares a task on the user's own files.

    Raises:
        PotstillError: there is no such task; the message names the nearest one. Or the file declares no task.
    """
    if is_task_file(name):
        task = read_task(name)
        if task.name in TASKS and task.name not in OWN:
            raise PotstillError(f"{name}: name is {task.name!r}, which is another task: give the task its own name.")
        return task
    if name not in TASKS:
        near = difflib.get_close_matches(name.casefold(), TASKS, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise PotstillError(
            f"There is no task {name!r}; the tasks are {', '.join(TASKS)}, and those of .yaml files{hint}."
        )
    return TASKS[name]


def title_of(name: str) -> str:
    """Return the title of a task in papers; its name if it is not declared here, as in results of another version."""
    return TASKS[name].title if name in TASKS else name


def suites() -> dict[str, tuple[str, ...]]:
    """Return suite → names of its tasks, as the tasks declare them. Those on a user's own files are in none."""
    found: dict[str, tuple[str, ...]] = {}
    for name, task in TASKS.items():
        if name in OWN:
            continue
        found[task.suite_name] = (*found.get(task.suite_name, ()), name)
    return found


def short_names(task: str) -> dict[str, str]:
    """Return metric or split → its name in tables: the names that the task declares, and the metrics of all tasks.

    Results of another version may have a task that is not declared here, or metrics that the task no longer has.
    """
    declared = TASKS[task].short_names if task in TASKS else {}
    return {name: metric.short for name, metric in METRICS.items()} | UNITS | declared
