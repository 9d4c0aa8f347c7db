"""Table 2: IMDb, and question answering with and without the second distillation.

    python -m reproduce.table2 --imdb DATA/ --squad squad/ --seeds 5
    python -m reproduce.table2 --imdb DATA/ --squad xquad.en.json --squad_options num_train_epochs=15 learning_rate=1e-4

`--squad` is a folder with SQuAD's train and dev files, or one file in SQuAD's format, which is then split by article.
In the second distillation the student learns the task from the labels and from a teacher fine-tuned on the task.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reproduce.common import named_values, new_parser, place_of, run, write_result
from reproduce.scoring import scored
from reproduce.table1 import add_tasks, models_of, tuning_of


def main(argv: list[str]) -> None:
    """Score the models on both tasks and write the scores."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--imdb", type=Path, help="folder with the data of IMDb, or with imdb/ in it; default: from the hub"
    )
    parser.add_argument("--squad", type=Path, help="folder or file in SQuAD's format; default: from the hub")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME=FOLDER", help="the first is the teacher, the second the student"
    )
    for task in ("imdb", "squad"):
        parser.add_argument(
            f"--{task}_options", nargs="*", default=[], metavar="NAME=VALUE", help="more options for `evaluate`"
        )
    add_tasks(parser)
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    models = models_of(options, place, ("student", "alone"))
    found = {}
    for suite, data in (("imdb", options.imdb), ("squad", options.squad)):
        tuning = tuning_of(options) | named_values(getattr(options, f"{suite}_options"), f"--{suite}_options")
        if suite == "squad":
            tuning["second_distillation"] = [list(models)[1]]
        found[suite] = scored(suite, place, models, [suite], data, **tuning)
    write_result(place, "table2", found)


if __name__ == "__main__":
    sys.exit(run(main))
