"""Masked LM of finished models on held-out text, compared with the teacher under the same masks.

    python -m reproduce.held_out --models student=DIR … --teacher DIR --corpora own=DIR other=DIR --output FILE

The other scripts run it as a separate process, so that its GPU memory is free again afterwards.
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
    """Return model → corpus → metrics, such as `loss` and `accuracy`; see `potstill.training.evaluation`.

    A corpus with blocks longer than `short` tokens is measured twice: on blocks that are cut to `short` tokens, and on
    whole blocks under a second name such as "own, 512 tokens".

    Raises:
        PotstillError: a model or corpus cannot be read. The process has printed the reason.
    """
    output = place.work / ".held-out.json"
    output.unlink(missing_ok=True)
    arguments = ["--teacher", str(teacher), "--output", str(output), "--short", str(short)]
    for option, folders in (("--models", models), ("--corpora", corpora)):
        arguments += [option, *(f"{name}={folder}" for name, folder in folders.items())]
    gpus = visible_gpus(min(place.gpus, 1))
    run_script("held_out", arguments, gpus)
    found = read_json(output)
    output.unlink()
    return found


def main(argv: list[str]) -> None:
    """Measure every model on every corpus and write the metrics."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--short", type=int, required=True, help="tokens that longer blocks are cut to")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several GPUs visible, each would need its own process
    teacher = load_masked_lm(options.teacher)
    corpora = {name: Corpus.open(folder) for name, folder in map(_pair, options.corpora)}
    found: dict[str, dict[str, Any]] = {}
    for name, folder in map(_pair, options.models):
        model = load_masked_lm(folder, role=name)
        found[name] = {}
        for corpus_name, corpus in corpora.items():
            found[name] |= _measured(model, teacher, corpus_name, corpus, options.short)
    write_text(options.output, json.dumps(found, indent=1) + "\n")


def _measured(model: Any, teacher: Any, name: str, corpus: Corpus, short: int) -> dict[str, dict[str, float]]:
    """Return the metrics of one model on one corpus, for one or two block lengths."""
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
    found = {key.removeprefix("_"): value for key, value in found.items()}
    short_metrics = {key.removeprefix("short_"): value for key, value in found.items() if key.startswith("short_")}
    if not short_metrics:
        return {name: found}
    return {name: short_metrics, f"{name}, {size} tokens": {key: found[key] for key in short_metrics}}


def _pair(argument: str) -> tuple[str, str]:
    name, _, folder = argument.partition("=")
    return name, folder


if __name__ == "__main__":
    sys.exit(run(main))
