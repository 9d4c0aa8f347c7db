"""The folder that a run leaves: a model that loads anywhere, its card, its recipe and its measured results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.arguments import RECIPE, RunArguments, recipe_values
from potstill.errors import PotstillError
from potstill.files import check_output_dir
from potstill.report.model_card import model_card
from potstill.training.checkpoints import WRITE_ERRORS, cannot_write, find_checkpoint, last_checkpoint
from potstill.training.hardware import hardware
from potstill.training.trainer import DistillationTrainer
from potstill.versions import versions

RESULTS = "results.json"


def claim_output_dir(args: RunArguments) -> Path:
    """Return the output folder of a run.

    Raises:
        PotstillError: the folder has something in it, and neither resuming nor overwriting was asked for; the run reads
            it; or there is no such checkpoint to resume from.
    """
    folder = check_output_dir(args.output_dir, bool(args.resume_from_checkpoint) or args.overwrite_output_dir)
    for name in ("model", "teacher", "corpus"):
        read = getattr(args, name, None)
        if isinstance(read, str) and folder.is_dir() and Path(read).expanduser().resolve() == folder.resolve():
            raise PotstillError(
                f"--output_dir {folder} is the folder of --{name}, which would be lost: name another folder."
            )
    if args.resume_from_checkpoint:
        find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    return folder


def clear_checkpoints(args: RunArguments, folder: Path) -> None:
    """Remove an earlier run's checkpoints where the user said to overwrite it; asked once nothing speaks against it.

    Otherwise the next `--resume_from_checkpoint true` would take them for its own.
    """
    if args.overwrite_output_dir and not args.resume_from_checkpoint and args.should_save:
        for checkpoint in (*folder.glob("checkpoint-*"), *folder.glob(".checkpoint*")):
            shutil.rmtree(checkpoint, ignore_errors=True)


@contextmanager
def whole_output(folder: Path) -> Iterator[Path]:
    """Give a folder to write a run's output to, whose files go to the output folder once all of them are there.

    Args:
        folder: the run's output folder; checkpoints in it stay.

    Raises:
        PotstillError: the output cannot be written; the last checkpoint is still there.
    """
    staging = folder / ".output.partial"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        for file in sorted(staging.iterdir()):
            os.replace(file, folder / file.name)
    except WRITE_ERRORS as error:
        raise cannot_write(folder, error, last_checkpoint(folder)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_output(trainer: DistillationTrainer, folder: Path) -> None:
    """Evaluate the trained model and write its folder, file by file from a complete copy beside them.

    Args:
        trainer: after training, with its recipe.
        folder: the run's output folder; checkpoints in it stay.

    Raises:
        PotstillError: the folder cannot be written; the last checkpoint is still there.
    """
    results = run_results(trainer)
    if not trainer.args.should_save:
        return
    with whole_output(folder) as staging:
        trainer.student.save_pretrained(staging)
        trainer.processing_class.save_pretrained(staging)
        (staging / RECIPE).write_text(trainer.recipe, encoding="utf-8")
        (staging / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        card = model_card(trainer.student.config, recipe_values(trainer.args), results, trainer.corpus.manifest)
        (staging / "README.md").write_text(card, encoding="utf-8")


def run_results(trainer: DistillationTrainer) -> dict[str, Any]:
    """Return what was measured: held-out figures before, during and after training, the loss curve, the cost."""
    history = trainer.state.log_history
    evaluations = [entry for entry in history if "eval_loss" in entry]
    if len(trainer.corpus.validation) and (not evaluations or evaluations[-1]["step"] != trainer.state.global_step):
        trainer.evaluate()
        evaluations.append(history[-1])
    return {
        "held_out": {
            "initial": _metrics(evaluations[0]) if evaluations and evaluations[0]["step"] == 0 else None,
            "final": _metrics(evaluations[-1]) if evaluations else None,
        },
        "cost": {
            "steps": trainer.state.global_step,
            "tokens": trainer.state.global_step * trainer.tokens_per_step,
            "seconds": round(trainer.run_control.elapsed, 1),
            "processes": trainer.args.world_size,
            "hardware": hardware(trainer.args.device),
        },
        "parameters": sum(parameter.numel() for parameter in trainer.student.parameters()),
        "versions": versions("potstill", "torch", "transformers", "datasets", "tokenizers"),
        "log_history": history,
    }


def _metrics(entry: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
