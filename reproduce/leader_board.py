"""The leader board of trainings: minutes until a student is as good as that of today's recipe, on one GPU.

    python -m reproduce.leader_board --teacher DIR --corpus blocks-512/ --minutes 9 --task_data glue/ \
        --entries recipes/fast.yaml@4.5

The reference is the recipe of `reproduce.students`, trained for `--minutes`. Each entry is a recipe file and its
minutes. All start from the same layers of the same teacher, and each trains on one GPU. Two run at a time on two GPUs.
An entry counts if its held-out loss and its KL to the teacher are no worse than the reference's. With several `--runs`
the reference's worst run is the bar. Repeat the command to continue: finished runs are skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from potstill.errors import PotstillError
from potstill.recipe_file import read_recipe
from reproduce.common import Place, conditions, named_values, new_parser, place_of, read_result, run, write_result
from reproduce.held_out import held_out
from reproduce.runs import Done, Job, run_jobs
from reproduce.scoring import check_tasks, scored
from reproduce.students import add_recipe, recipe_of
from reproduce.table1 import add_tasks, tuning_of
from reproduce.training import distilling, figures, model_figures, sessions_of

REFERENCE = "reference"
NAME = "leader_board"
QUIET: dict[str, Any] = {"eval_strategy": "no", "eval_on_start": False, "max_eval_samples": 64, "seed": 42}
"""Nothing is evaluated during a run, because that would take of its minutes. `held_out` does it after all runs."""


def main(argv: list[str]) -> None:
    """Train the reference and the entries, measure them, and add a board to the file of results."""
    parser = new_parser(__doc__, minutes=9)
    add_recipe(parser)
    parser.add_argument("--entries", nargs="+", required=True, metavar="FILE@MINUTES", help="recipes to compare")
    parser.add_argument("--runs", type=int, default=1, help="trainings of each recipe, with different seeds (1)")
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data; without it no task is scored")
    parser.add_argument("--suite", default="glue:sst2,cola,stsb", help="tasks (glue:sst2,cola,stsb)")
    add_tasks(parser, seeds=3)
    parser.add_argument(
        "--task_options", nargs="*", default=[], metavar="NAME=VALUE", help="more options for `evaluate`"
    )
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    if options.runs < 1:
        raise PotstillError(f"--runs is {options.runs}: it must be 1 or more.")
    recipe = recipe_of(options, place)
    entries = {REFERENCE: (options.minutes, recipe)}
    for words in options.entries:
        name, minutes, changes = _entry(words)
        if name in entries:
            raise PotstillError(f"--entries has two entries {name}: rename one of the files, or give it other minutes.")
        entries[name] = (minutes, _base(recipe) | changes)
    if options.task_data:
        check_tasks(options.seeds, options.task_data)

    trained = _train(entries, options.runs, place)
    models = {f"{name}-{number}": done.folder for name, runs in trained.items() for number, done in enumerate(runs)}
    measured = held_out({"teacher": recipe["teacher"]} | models, recipe["teacher"], {"own": recipe["corpus"]}, place,
                        options.short_block_size)  # fmt: skip
    rows = {}
    for name, (minutes, settings) in entries.items():
        found = [measured[f"{name}-{number}"] for number in range(options.runs)]
        rows[name] = _row(name, minutes, settings, trained[name], found)
    board = {
        "conditions": conditions(place, NAME),
        "teacher": model_figures(recipe["teacher"]),
        "sessions": sessions_of(recipe["teacher"]),
        "teacher_held_out": measured["teacher"],
        "rows": rows,
        "tasks": None,
    }
    board["reached"] = reached(rows)
    _write(place, board)
    if options.task_data:
        first = {name: runs[0].folder for name, runs in trained.items()}
        tuning = tuning_of(options) | named_values(options.task_options, "--task_options")
        compared = {"teacher": recipe["teacher"]} | first
        plain = Place(place.work, place.results, place.gpus)  # unknown options go to the distillations only
        board["tasks"] = scored("leader-board-glue", plain, compared, [options.suite], options.task_data, **tuning)
        _write(place, board)


def _entry(words: str) -> tuple[str, float, dict[str, Any]]:
    """Return the name, the minutes and the options of an entry FILE@MINUTES, whose minutes replace those of the file.

    Raises:
        PotstillError: it has another form, or the file cannot be read or names what all runs share.
    """
    file, _, text = words.rpartition("@")
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not file or minutes <= 0:
        raise PotstillError(f"--entries {words!r} is not FILE@MINUTES: write it as in recipes/fast.yaml@4.5.")
    values = dict(read_recipe(Path(file)))
    values.pop("max_train_minutes", None)  # the minutes after the @ count
    shared = [name for name in ("teacher", "corpus", "output_dir") if name in values]
    if shared:
        raise PotstillError(f"{file} names {shared[0]}, which is the same for all entries: leave it out.")
    return f"{Path(file).stem}, {minutes:g} min", minutes, values


def _base(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what the entries share with the reference: the teacher, the corpus and the layers to start from."""
    return {name: recipe[name] for name in ("teacher", "corpus", "layers")}


def _train(entries: dict[str, tuple[float, dict[str, Any]]], runs: int, place: Place) -> dict[str, list[Done]]:
    """Run all trainings, the longest first, and return those of each entry."""
    order = sorted(entries, key=lambda name: -entries[name][0])
    jobs: list[Job] = []
    for number in range(runs):
        for name in order:
            minutes, settings = entries[name]
            job = f"board-{name.replace(', ', '-').replace(' ', '')}-{number}"
            quiet = QUIET | {"seed": QUIET["seed"] + number}
            jobs.append(distilling(job, place, minutes=minutes, distributed=False, **quiet | settings))
    done = run_jobs(jobs, place)
    return {name: [done[number * len(order) + order.index(name)] for number in range(runs)] for name in entries}


def _row(
    name: str, minutes: float, settings: dict[str, Any], runs: list[Done], found: list[dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """Return the row of an entry: its options, its cost, and its held-out metrics in each run."""
    costs = [figures(done)["cost"] for done in runs]
    return {
        "minutes": minutes,
        "by_the_clock": median(done.seconds for done in runs) / 60,
        "recipe": {key: str(value) for key, value in settings.items() if key not in ("teacher", "corpus")},
        "steps": median(cost["steps"] for cost in costs),
        "tokens": median(cost["tokens"] for cost in costs),
        "tokens_per_second": costs[0]["tokens_per_second"],
        "held_out": found,
    }


def reached(rows: dict[str, Any]) -> dict[str, bool]:
    """Return for each entry whether its median loss and KL are no worse than those of the reference's worst run."""
    bars = {metric: max(of["own"][metric] for of in rows[REFERENCE]["held_out"]) for metric in ("loss", "kl")}
    return {
        name: all(median(of["own"][metric] for of in row["held_out"]) <= bar for metric, bar in bars.items())
        for name, row in rows.items()
    }


def _write(place: Place, board: dict[str, Any]) -> None:
    """Write the file with a board, in place of one from the same day, commit and hardware, and the earlier boards."""

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(one["conditions"][name] for name in ("date", "commit", "hardware"))

    earlier = (read_result(place.results, NAME) or {"boards": []})["boards"]
    boards = [one for one in earlier if key(one) != key(board)]
    write_result(place, NAME, {"boards": [board, *boards]})


if __name__ == "__main__":
    sys.exit(run(main))
