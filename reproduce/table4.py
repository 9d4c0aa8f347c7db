"""Table 4: the effect of each part of the method on GLUE, by distillations with one change each.

    python -m reproduce.table4 --minutes 5 --task_data glue/

Every student is distilled for the same GPU-minutes on one GPU, so that a step has the same size on every machine. With
several GPUs, distillations run in parallel. The last three rows are not in the paper; users ask about them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from reproduce.common import named_values, new_parser, place_of, run, write_result
from reproduce.runs import run_jobs
from reproduce.scoring import check_tasks, scored
from reproduce.students import add_recipe, recipe_of
from reproduce.table1 import add_tasks, tuning_of
from reproduce.training import distilling, figures, model_figures, sessions_of

ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "no-ce": {"alpha_ce": 0},
    "no-cos": {"alpha_cos": 0},
    "no-mlm": {"alpha_mlm": 0},
    "random": {"initialise": "random"},
    "masked": {"soft_targets": "masked"},
    "first": {"layers": "first"},
    "alternate": {"layers": "alternate"},
}
"""Row → options that differ from the first row."""


def main(argv: list[str]) -> None:
    """Distil and score all students, and write the macro scores."""
    parser = new_parser(__doc__, minutes=5)
    add_recipe(parser)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS)[1:], default=list(ROWS)[1:], help="rows after the full one"
    )
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data; default: from the hub")
    parser.add_argument("--suite", default="glue", help="glue, or some of its tasks as glue:cola,rte")
    parser.add_argument(
        "--task_options", nargs="*", default=[], metavar="NAME=VALUE", help="more options for `evaluate`"
    )
    parser.add_argument("--teacher_too", action="store_true", help="score the teacher as well, as the last row")
    add_tasks(parser)
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    check_tasks(options.seeds, options.task_data)
    recipe = recipe_of(options, place)
    names = ["full", *(name for name in ROWS if name in options.rows)]
    if "," in options.layers:  # a row with a rule for its layers must have the same number
        recipe["num_hidden_layers"] = len(options.layers.split(","))
    jobs = [
        distilling(f"ablation-{name}", place, minutes=options.minutes, distributed=False, **recipe | ROWS[name])
        for name in names
    ]
    done = dict(zip(names, run_jobs(jobs, place), strict=True))
    models = {name: trained.folder for name, trained in done.items()}
    models |= {"teacher": recipe["teacher"]} if options.teacher_too else {}
    tuning = tuning_of(options) | named_values(options.task_options, "--task_options")
    # Unknown options go to the distillations only.
    tasks = scored("ablation-glue", replace(place, more=()), models, [options.suite], options.task_data, **tuning)
    rows = {name: figures(trained) for name, trained in done.items()}
    write_result(
        place,
        "table4",
        {
            "teacher": model_figures(recipe["teacher"]),
            "sessions": sessions_of(recipe["teacher"]),
            "minutes": options.minutes,
            "recipe": {name: value for name, value in recipe.items() if name not in ("teacher", "corpus")},
            "rows": rows,
            "tasks": tasks,
        },
    )


if __name__ == "__main__":
    sys.exit(run(main))
