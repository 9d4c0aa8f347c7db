"""Table 1: what the student keeps on GLUE, beside the student without a teacher and the one without training.

    python -m reproduce.table1 --task_data glue/ --seeds 5
    python -m reproduce.table1 --task_data glue/ --search
    python -m reproduce.table1 --task_data glue/ --models teacher=DIR student=DIR

Medians over seeds; every model is fine-tuned in the same way, at one rate or with the best of five for each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from reproduce.common import Place, named_values, parser, place_of, run, write_result
from reproduce.scoring import scored

ROWS = ("student", "alone", "initialised")


def add_tasks(made: Any) -> None:
    """Add the options that say how models are fine-tuned."""
    made.add_argument("--seeds", type=int, default=5, help="fine-tunings of a model on a task (5)")
    made.add_argument("--search", action="store_true", help="choose a learning rate for each model and task")
    made.add_argument("--tuning_rate", type=float, default=5e-5, help="learning rate on the tasks, without --search")


def tuning_of(options: Any) -> dict[str, Any]:
    """Return the options of `potstill evaluate` that `add_tasks` has."""
    rate = {"search": True} if options.search else {"learning_rate": options.tuning_rate}
    return {"seeds": options.seeds, **rate}


def models_of(options: Any, place: Place, rows: tuple[str, ...] = ROWS) -> dict[str, Path]:
    """Return the models to compare: those named, or those that the scripts before this one left."""
    if options.models:
        return {name: Path(folder) for name, folder in named_values(options.models, "--models").items()}
    return {"teacher": place.teacher, **{name: place.work / name for name in rows}}


def main(argv: list[str]) -> None:
    """Score the models and write medians, macro scores and retention."""
    made = parser(__doc__)
    made.add_argument("--task_data", type=Path, help="folder of GLUE's data; the hub's if not given")
    made.add_argument("--suite", default="glue", help="glue, or some of its tasks as glue:cola,rte")
    made.add_argument("--models", nargs="+", metavar="NAME=FOLDER", help="others than those of reproduce.students")
    add_tasks(made)
    options, more = made.parse_known_args(argv)
    place = place_of(options, more)
    models = models_of(options, place)
    write_result(
        place, "table1", scored("glue", place, models, [options.suite], options.task_data, **tuning_of(options))
    )


if __name__ == "__main__":
    sys.exit(run(main))
