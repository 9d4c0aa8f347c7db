"""The whole experiment in order: `python -m reproduce --text … --task_data glue/ --imdb … --squad …`.

Each script is a separate process and skips finished runs, so repeat the same command after an interruption. To use the
options of a single script, run it alone: `python -m reproduce.table1 --help`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from potstill.errors import PotstillError
from reproduce.common import new_parser, place_of, run
from reproduce.runs import run_script
from reproduce.scoring import check_tasks

MINUTES = {"teacher": 80.0, "students": 10.0, "table4": 5.0, "time_to_quality": 8.0}
"""GPU-minutes of each training, by script."""


def main(argv: list[str]) -> None:
    """Run all scripts and write the page."""
    parser = new_parser(__doc__)
    parser.epilog = "Repeat a command to continue: finished runs are skipped."
    parser.add_argument("--text", nargs="+", help="text to pre-train on; required without --teacher")
    parser.add_argument("--other_text", nargs="+", help="text of another source, only for evaluation")
    parser.add_argument(
        "--prepare_options", nargs="*", metavar="NAME=VALUE", help="more options for `potstill prepare`"
    )
    parser.add_argument("--teacher", type=Path, help="a BERT of your own, instead of one made from --text")
    parser.add_argument("--corpus", type=Path, help="with --teacher: blocks prepared with its tokenizer")
    parser.add_argument(
        "--layers",
        help="layers of the teacher that students start from; use alternate for a teacher that was not grown",
    )
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data; default: from the hub")
    parser.add_argument("--imdb", type=Path, help="folder of IMDb's data; default: from the hub")
    parser.add_argument("--squad", type=Path, help="folder or file in SQuAD's format; default: from the hub")
    parser.add_argument("--seeds", type=int, default=5, help="fine-tunings of a model on a task (5)")
    defaults = ", ".join(f"{minutes:g} for {script}" for script, minutes in MINUTES.items())
    parser.add_argument("--minutes", type=float, help=f"GPU-minutes of every training, instead of {defaults}")
    options = parser.parse_args(argv)
    if (options.text is None) == (options.teacher is None):
        raise PotstillError("Give either --text to make a teacher from, or --teacher and --corpus.")
    if (options.teacher is None) != (options.corpus is None):
        raise PotstillError(
            "--teacher and --corpus belong together: give both, with blocks prepared with the teacher's tokenizer."
        )
    place_of(options)
    check_tasks(options.seeds, options.task_data, options.imdb, options.squad)
    for script, arguments in commands(options):
        run_script(script, arguments)


def commands(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Return the scripts in order, each with its options."""
    places = ["--work_dir", str(options.work_dir), "--results_dir", str(options.results_dir)]
    places += ["--gpus", str(options.gpus)] if options.gpus is not None else []
    tasks = _given(options, "task_data")
    seeds = _given(options, "seeds")
    recipe = _given(options, "teacher", "corpus", "layers")
    models = []
    if options.teacher:
        folders = {"teacher": options.teacher} | {name: options.work_dir / name for name in ("student", "alone")}
        models = ["--models", *(f"{name}={folder}" for name, folder in folders.items())]
    all_models = [*models, f"initialised={options.work_dir / 'initialised'}"] if models else []
    found = [("teacher", _given(options, "text", "other_text", "prepare_options"))] if options.text else []
    found += [
        ("students", recipe),
        ("table1", [*all_models, *tasks, *seeds]),
        ("table2", [*models, *_given(options, "imdb", "squad"), *seeds]),
        ("table3", [*models, *tasks]),
        ("table4", [*recipe, *tasks, *seeds]),
        ("time_to_quality", recipe),
        ("cost", ["--bench", *_given(options, "teacher")]),
    ]
    scripts = [(script, [*places, *_minutes(options, script), *arguments]) for script, arguments in found]
    return [*scripts, ("render", ["--results_dir", str(options.results_dir)])]


def _minutes(options: argparse.Namespace, script: str) -> list[str]:
    if script not in MINUTES:
        return []
    return ["--minutes", str(options.minutes or MINUTES[script])]


def _given(options: argparse.Namespace, *names: str) -> list[str]:
    """Return the given options among `names` as command-line arguments."""
    arguments: list[str] = []
    for name in names:
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


if __name__ == "__main__":
    sys.exit(run(main))
