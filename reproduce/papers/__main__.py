"""All papers in order: `python -m reproduce.papers --model MODEL --task_data glue/`.

Each script is a separate process and skips finished runs, so repeat the same command after an interruption. A script
that needs data which no option names is left out, and the reason is printed. Each script gets those of the options
that it has. For more control, run a script alone: `python -m reproduce.papers.pruning --help`.
"""

from __future__ import annotations

import sys
from importlib import import_module

from potstill.errors import PotstillError
from reproduce.common import run
from reproduce.runs import run_script

SCRIPTS: tuple[str, ...] = (
    "bilstm",
    "multilingual_tagging",
    "precision",
    "pretrained_distillation",
    "pruning",
    "questions",
)
"""Names of the scripts in this folder, in the order in which they run."""


def main(argv: list[str]) -> None:
    """Run all scripts, each with the options that it has.

    Raises:
        PotstillError: no script has an option, or a script failed.
    """
    given = {script: options_of(script, argv) for script in SCRIPTS}
    known = {argument for options in given.values() for argument in options}
    if unknown := [argument for argument in argv if argument not in known]:
        raise PotstillError(
            f"No script has the option {' '.join(unknown)}: see `python -m reproduce.papers.bilstm -h`."
        )
    for script, options in given.items():
        run_script(f"papers.{script}", options)


def options_of(script: str, argv: list[str]) -> list[str]:
    """Return the command-line arguments that a script knows, without those that it would pass to potstill's verbs."""
    _, others = import_module(f"reproduce.papers.{script}").new_options().parse_known_args(argv)
    kept = []
    for argument in argv:  # `others` has the order of `argv`
        if others and argument == others[0]:
            others.pop(0)
        else:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    sys.exit(run(main))
