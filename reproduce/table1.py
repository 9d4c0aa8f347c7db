"""Table 1: how much of the teacher's GLUE score each student keeps: distilled, without a teacher, without training.

    python -m reproduce.table1 --task_data glue/ --seeds 5
    python -m reproduce.table1 --task_data glue/ --search
    python -m reproduce.table1 --task_data glue/ --models teacher=DIR student=DIR

The scores are medians over seeds. Every model is fine-tuned in the same way: with one learning rate, or with `--search`
at the best of five.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from reproduce.common import Place, named_values, new_parser, place_of, run, write_result
from reproduce.scoring import scored

ROWS = ("student", "alone", "initialised")


def add_tasks(parser: Any, seeds: int = 5) -> None:
    """Add the options of the fine-tuning, with a default number of seeds."""
    parser.add_argument("--seeds", type=int, default=seeds, help=f"fine-tunings of a model on a task ({seeds})")
    parser.add_argument("--search", action="store_true", help="choose a learning rate for each model and task")
    parser.add_argument("--tuning_rate", type=float, default=5e-5, help="learning rate on the tasks, without --search")


def tuning_of(options: Any) -> dict[str, Any]:
    """Return the options of `potstill evaluate` from those of `add_tasks`."""
    rate = {"search": True} if options.search else {"learning_rate": options.tuning_rate}
    return {"seeds": options.seeds, **rate}


def models_of(options: Any, place: Place, rows: tuple[str, ...] = ROWS) -> dict[str, Path]:
    """Return the models to compare: those named by `--models`, or those of the earlier scripts."""
    if options.models:
        return {name: Path(folder) for name, folder in named_values(options.models, "--models").items()}
    return {"teacher": place.teacher, **{name: place.work / name for name in rows}}


def main(argv: list[str]) -> None:
    """Score the models and write medians, macro scores and retention."""
    parser = new_parser(__doc__)
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data; default: from the hub")
    parser.add_argument("--suite", default="glue", help="glue, or some of its tasks as glue:cola,rte")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME=FOLDER", help="models instead of those of reproduce.students"
    )
    add_tasks(parser)
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    models = models_of(options, place)
    write_result(
        place, "table1", scored("glue", place, models, [options.suite], options.task_data, **tuning_of(options))
    )


if __name__ == "__main__":
    sys.exit(run(main))
