"""The whole experiment in order: `python -m reproduce --text … --task_data glue/ --imdb … --squad …`.

Each script is a process of its own and skips what is finished, so the same command is given again after an
interruption. Options of a single script are given to it alone: `python -m reproduce.table1 --help`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from potstill.errors import PotstillError
from reproduce.common import parser, place_of, run
from reproduce.runs import run_script
from reproduce.scoring import check_tasks

MINUTES = {"teacher": 80.0, "students": 10.0, "table4": 5.0, "time_to_quality": 8.0}
"""GPU-minutes of a training of each script."""


def main(argv: list[str]) -> None:
    """Run all scripts and write the page."""
    made = parser(__doc__)
    made.epilog = "Repeat a command to go on: what is finished is skipped."
    made.add_argument("--text", nargs="+", help="to pre-train on; needed unless there is a --teacher")
    made.add_argument("--other_text", nargs="+", help="text of another source, only to measure on")
    made.add_argument("--prepare_options", nargs="*", metavar="NAME=VALUE", help="more for `potstill prepare`")
    made.add_argument("--teacher", type=Path, help="a BERT of your own, instead of one made from --text")
    made.add_argument("--corpus", type=Path, help="with --teacher: blocks prepared with its tokenizer")
    made.add_argument("--layers", help="layers of the teacher that students start from; alternate for one not grown")
    made.add_argument("--task_data", type=Path, help="folder of GLUE's data; the hub's if not given")
    made.add_argument("--imdb", type=Path, help="folder of IMDb's data; the hub's if not given")
    made.add_argument("--squad", type=Path, help="folder or file in SQuAD's format; the hub's if not given")
    made.add_argument("--seeds", type=int, default=5, help="fine-tunings of a model on a task (5)")
    usual = ", ".join(f"{minutes:g} for {script}" for script, minutes in MINUTES.items())
    made.add_argument("--minutes", type=float, help=f"GPU-minutes of every training, instead of {usual}")
    options = made.parse_args(argv)
    if (options.text is None) == (options.teacher is None):
        raise PotstillError("Give either --text to make a teacher from, or --teacher and --corpus.")
    if (options.teacher is None) != (options.corpus is None):
        raise PotstillError("--teacher and --corpus belong together: blocks prepared with its tokenizer.")
    place_of(options)
    check_tasks(options.seeds, options.task_data, options.imdb, options.squad)
    for script, words in commands(options):
        run_script(script, words)


def commands(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Return the scripts in order, each with its options."""
    here = ["--work_dir", str(options.work_dir), "--results_dir", str(options.results_dir)]
    here += ["--gpus", str(options.gpus)] if options.gpus is not None else []
    tasks = _given(options, "task_data")
    seeds = _given(options, "seeds")
    recipe = _given(options, "teacher", "corpus", "layers")
    models = []
    if options.teacher:
        folders = {"teacher": options.teacher} | {name: options.work_dir / name for name in ("student", "alone")}
        models = ["--models", *(f"{name}={folder}" for name, folder in folders.items())]
    whole = [*models, f"initialised={options.work_dir / 'initialised'}"] if models else []
    found = [("teacher", _given(options, "text", "other_text", "prepare_options"))] if options.text else []
    found += [
        ("students", recipe),
        ("table1", [*whole, *tasks, *seeds]),
        ("table2", [*models, *_given(options, "imdb", "squad"), *seeds]),
        ("table3", [*models, *tasks]),
        ("table4", [*recipe, *tasks, *seeds]),
        ("time_to_quality", recipe),
        ("cost", ["--bench", *_given(options, "teacher")]),
    ]
    every = [(script, [*here, *_minutes(options, script), *words]) for script, words in found]
    return [*every, ("render", ["--results_dir", str(options.results_dir)])]


def _minutes(options: argparse.Namespace, script: str) -> list[str]:
    if script not in MINUTES:
        return []
    return ["--minutes", str(options.minutes or MINUTES[script])]


def _given(options: argparse.Namespace, *names: str) -> list[str]:
    """Return options as words, those that were given."""
    words: list[str] = []
    for name in names:
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


if __name__ == "__main__":
    sys.exit(run(main))
