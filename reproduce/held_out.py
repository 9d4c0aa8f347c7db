"""Masked LM of finished models on held-out text, each beside the teacher under the same masks.

    python -m reproduce.held_out --models student=DIR … --teacher DIR --corpora own=DIR other=DIR --output FILE

The other scripts run it as a process of its own, so that the memory it takes on a GPU is free again afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill import Corpus, DistillationArguments, DistillationTrainer
from potstill.files import write_text
from potstill.student import load_masked_lm
from reproduce.common import Place, read_json, run
from reproduce.power import visible_gpus
from reproduce.runs import run_script

SAMPLES = 2048


def held_out(
    models: dict[str, Path], teacher: Path, corpora: dict[str, Path], place: Place, short: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return model → corpus → figures, `loss` and `accuracy` among them; see `potstill.training.evaluation`.

    A corpus of longer blocks than `short` tokens is measured on blocks cut to so many, and once more, as
    "own, 512 tokens" say, on whole ones.

    Raises:
        PotstillError: a model or corpus cannot be read, which the process has told.
    """
    output = place.work / ".held-out.json"
    output.unlink(missing_ok=True)
    words = ["--teacher", str(teacher), "--output", str(output), "--short", str(short)]
    for option, folders in (("--models", models), ("--corpora", corpora)):
        words += [option, *(f"{name}={folder}" for name, folder in folders.items())]
    gpus = visible_gpus(min(place.gpus, 1))
    run_script("held_out", words, gpus)
    found = read_json(output)
    output.unlink()
    return found


def main(argv: list[str]) -> None:
    """Measure every model on every corpus and write the figures."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    made.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    made.add_argument("--corpora", nargs="+", required=True, metavar="NAME=FOLDER")
    made.add_argument("--teacher", required=True)
    made.add_argument("--short", type=int, required=True, help="tokens that longer blocks are cut to")
    made.add_argument("--output", type=Path, required=True)
    options = made.parse_args(argv)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # several GPUs would each want a process
    teacher = load_masked_lm(options.teacher)
    corpora = {name: Corpus.open(folder) for name, folder in map(_pair, options.corpora)}
    found: dict[str, dict[str, Any]] = {}
    for name, folder in map(_pair, options.models):
        model = load_masked_lm(folder, role=name)
        found[name] = {}
        for where, corpus in corpora.items():
            found[name] |= _measured(model, teacher, where, corpus, options.short)
    write_text(options.output, json.dumps(found, indent=1) + "\n")


def _measured(model: Any, teacher: Any, where: str, corpus: Corpus, short: int) -> dict[str, dict[str, float]]:
    """Return the figures of one model on one corpus, at one length or at two."""
    size = corpus.train.block_size
    with TemporaryDirectory() as scratch:
        args = DistillationArguments(
            output_dir=scratch,
            per_device_train_batch_size=1,
            short_block_size=short if short < size else None,
            max_eval_samples=max(1, SAMPLES * short // max(short, size)),
            report_to="none",
        )
        found = DistillationTrainer(model, corpus, args, teacher).evaluate(metric_key_prefix="")
    found = {name.removeprefix("_"): value for name, value in found.items()}
    cut = {name.removeprefix("short_"): value for name, value in found.items() if name.startswith("short_")}
    if not cut:
        return {where: found}
    return {where: cut, f"{where}, {size} tokens": {name: found[name] for name in cut}}


def _pair(word: str) -> tuple[str, str]:
    name, _, folder = word.partition("=")
    return name, folder


if __name__ == "__main__":
    sys.exit(run(main))
