"""Three students of a teacher: distilled, trained for as long without the teacher, and not trained at all.

    python -m reproduce.students --minutes 10
    python -m reproduce.students --minutes 10 --teacher DIR --corpus blocks-128/ --layers alternate

All three start from the same layers of the teacher. The two trained students see the same blocks for the same
GPU-minutes. With several GPUs, each training uses all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers.utils import logging

from potstill import build_student
from potstill.corpus import Corpus, load_tokenizer
from potstill.files import complete_folder
from potstill.student import takes_token_types
from reproduce.common import Place, existing, new_parser, place_of, run, write_result
from reproduce.held_out import held_out
from reproduce.runs import run_job
from reproduce.training import add_lengths, corpus_figures, cut_short, distilling, figures, model_figures

WITHOUT_TEACHER = {"alpha_ce": 0, "alpha_cos": 0}


def add_recipe(parser: Any) -> None:
    """Add the options of a distillation."""
    parser.add_argument("--teacher", type=Path, help="folder of the teacher; default: that of reproduce.teacher")
    parser.add_argument("--corpus", type=Path, help="folder of blocks; default: those of reproduce.teacher")
    parser.add_argument(
        "--layers",
        default="0,1,2,3,4,11",
        help="layers of the teacher to start from; use alternate for a teacher that was not grown by copying",
    )
    parser.add_argument("--masking", choices=("uniform", "frequency"), default="uniform")
    parser.add_argument("--soft_targets", choices=("all", "masked"), default="all")
    add_lengths(parser)
    parser.add_argument("--learning_rate", type=float, default=5e-4)


def recipe_of(options: Any, place: Place) -> dict[str, Any]:
    """Return the options of `potstill distill` from those of `add_recipe`."""
    teacher = existing(options.teacher or place.teacher, "teacher")
    corpus = existing(options.corpus or place.blocks(512), "teacher")
    return {
        "teacher": teacher,
        "corpus": corpus,
        **cut_short(corpus, options),
        "layers": options.layers,
        "masking": options.masking,
        "soft_targets": options.soft_targets,
        "per_device_train_batch_size": max(1, options.batch_tokens // Corpus.open(corpus).train.block_size),
        "learning_rate": options.learning_rate,
    }


def main(argv: list[str]) -> None:
    """Train two students, build the third, and measure all of them and the teacher on held-out text."""
    parser = new_parser(__doc__, minutes=10)
    add_recipe(parser)
    parser.add_argument(
        "--other_corpus", type=Path, help="blocks of another source for evaluation; default: those of reproduce.teacher"
    )
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    recipe = recipe_of(options, place)
    teacher, corpus = recipe["teacher"], recipe["corpus"]

    done = {
        name: run_job(distilling(name, place, minutes=options.minutes, **recipe | changes), place)
        for name, changes in (("student", {}), ("alone", WITHOUT_TEACHER))
    }
    models = {"teacher": teacher, **{name: trained.folder for name, trained in done.items()}}
    models["initialised"] = _initialised(place, teacher, options.layers)
    other = options.other_corpus or place.work / "blocks-other"
    corpora = {"own": corpus} | ({"other": other} if other.is_dir() else {})
    measured = held_out(models, teacher, corpora, place, options.short_block_size)
    rows: dict[str, Any] = {name: {"held_out": measured[name]} for name in models}
    for name, trained in done.items():
        rows[name] |= {key: value for key, value in figures(trained).items() if key in ("parameters", "cost")}
    write_result(
        place,
        "students",
        {
            "teacher": model_figures(teacher),
            "corpus": corpus_figures(corpus),
            "other": corpus_figures(other) if "other" in corpora else None,
            "minutes": options.minutes,
            "recipe": {name: value for name, value in recipe.items() if name not in ("teacher", "corpus")},
            "rows": rows,
        },
    )


def _initialised(place: Place, teacher: Path, layers: str) -> Path:
    """Write the student with which `potstill distill` starts."""
    folder = place.work / "initialised"
    student = build_student(str(teacher), layers=layers)
    logging.disable_progress_bar()
    with complete_folder(folder) as partial:
        student.save_pretrained(partial)
        load_tokenizer(str(teacher), takes_token_types(student.config)).save_pretrained(partial)
    return folder


if __name__ == "__main__":
    sys.exit(run(main))
