"""All papers in order: `python -m reproduce.papers --model MODEL --task_data glue/`.

Each script is a separate process and skips finished runs, so repeat the same command after an interruption. A script
that needs data which no option names is left out, and the reason is printed. To use the options of one script, run it
alone: `python -m reproduce.papers.pruning --help`.
"""

from __future__ import annotations

import sys

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
    """Run all scripts with the same options."""
    for script in SCRIPTS:
        run_script(f"papers.{script}", argv)


if __name__ == "__main__":
    sys.exit(run(main))
