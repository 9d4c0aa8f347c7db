"""The output folder of a run: a model that loads anywhere, its card, its recipe and its measured results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.arguments import RECIPE, RunArguments, recipe_values
from potstill.errors import PotstillError
from potstill.files import check_output_dir, flush, flush_names, replace_folder
from potstill.live_line import say
from potstill.locks import check_lock, locked
from potstill.permissions import share
from potstill.precision.simulated import in_float
from potstill.report.model_card import model_card
from potstill.student import is_headless
from potstill.student.sizes import sizes_of
from potstill.student.sizing import Estimate, megabytes
from potstill.training.checkpoints import (
    WRITE_ERRORS,
    cannot_write,
    find_checkpoint,
    is_resuming,
    last_checkpoint,
    load_run_state,
)
from potstill.training.emissions import measured_emissions
from potstill.training.encoder_options import OF_LANGUAGE_MODELS
from potstill.training.hardware import hardware
from potstill.training.overwriting import plan_overwriting, recover_old_output, replacing_old_output
from potstill.training.run_record import RunRecord
from potstill.training.teachers import name_of_teacher
from potstill.training.trainer import DistillationTrainer
from potstill.versions import versions
from potstill.wording import counted

RESULTS = "results.json"


@contextmanager
def claimed_output_dir(args: RunArguments) -> Iterator[Path]:
    """Yield the output folder of a run. No other process may use it until the body ends.

    A launcher that restarts a run after a failure (`torchrun --max-restarts`) repeats the same command. The content of
    the folder then belongs to this run, so the run continues from its newest good checkpoint.

    Raises:
        PotstillError: the folder is not empty, and the options ask neither to resume nor to overwrite; another process
            uses it; it cannot be written to; the run reads from it; or the checkpoint to resume from does not exist.
    """
    if not args.output_dir:
        raise PotstillError("--output_dir is missing: name the folder to write to.")
    folder = Path(args.output_dir).expanduser()
    with locked(folder, break_lock=args.break_lock):
        try:
            with args.main_process_first(local=False, desc="output folder"):
                _claim(args, folder)
            yield folder
        finally:
            # A launcher may restart the run. The journal must then stay, so that the run knows what it overwrites.
            if _is_first_process() and "TORCHELASTIC_RUN_ID" not in os.environ and folder.is_dir():
                recover_old_output(folder)


def _claim(args: RunArguments, folder: Path) -> None:
    if folder.is_dir() and _is_first_process():
        recover_old_output(folder, still_overwriting=_is_restart())
    if _is_restart() and last_checkpoint(folder) is not None:
        args.resume_from_checkpoint = "auto"
    resuming = is_resuming(args.resume_from_checkpoint)
    auto = str(args.resume_from_checkpoint).lower() == "auto"
    own_or_empty = last_checkpoint(folder) is not None or not _has_output(folder)
    check_output_dir(folder, args.overwrite_output_dir or _is_restart() or (resuming and (own_or_empty or not auto)))
    for name in ("model", "teacher", "corpus"):
        read = getattr(args, name, None)
        for one in read if isinstance(read, list) else [read]:
            if isinstance(one, str) and folder.is_dir() and Path(one).expanduser().resolve() == folder.resolve():
                raise PotstillError(
                    f"--output_dir {folder} is the folder of --{name}, which would be lost: name another folder."
                )
    if resuming:
        checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
        # Do not lose a finished model because all its checkpoints are damaged.
        if auto and checkpoint is None and (folder / RESULTS).is_file():
            check_output_dir(folder, args.overwrite_output_dir or _is_restart())
        args.resume_from_checkpoint = None if checkpoint is None else str(checkpoint)
        if checkpoint is not None:
            _keep_batch(args, checkpoint)
    # The old output stays until the new run has its first checkpoint.
    if args.overwrite_output_dir and not args.resume_from_checkpoint and _is_first_process() and folder.is_dir():
        plan_overwriting(folder)


def _keep_batch(args: RunArguments, checkpoint: Path) -> None:
    """Make a step take as many rows as before if the number of processes has changed.

    Raises:
        PotstillError: the processes cannot share the rows of a step equally.
    """
    before = RunRecord.from_state(load_run_state(checkpoint))
    if before is None or before.processes == args.world_size:
        return
    args.keep_batch(before.batch)
    if _is_first_process():
        say(
            f"The run continues on {counted(args.world_size, 'process', 'processes')} instead of {before.processes}. "
            "A step still takes "
            f"{counted(before.batch, 'row')}: each process takes {args.gradient_accumulation_steps} times "
            f"{args.train_batch_size}."
        )


def _is_restart() -> bool:
    """Return whether a launcher has restarted the processes of this run after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _has_output(folder: Path) -> bool:
    """Return whether a folder has more in it than the files of a run that ended before its first checkpoint."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(not name.startswith(".") and name not in ("runs", RECIPE) for name in names)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def atomic_output(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder for the output of a run. After the body its files move to the output folder.

    `results.json` moves last, and an earlier one is removed first: a folder that has it has all files of one run.

    Args:
        folder: the run's output folder; checkpoints in it stay.

    Raises:
        PotstillError: the output cannot be written. The last checkpoint is still there.
    """
    staging = folder / ".output.partial"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        check_lock(folder)
        share(staging)
        flush(staging)
        with replacing_old_output(folder):
            (folder / RESULTS).unlink(missing_ok=True)
            flush_names(folder)
            for file in sorted(staging.iterdir(), key=lambda file: (file.name == RESULTS, file.name)):
                if file.is_dir():  # of a module of a sentence encoder; an earlier run may have left one
                    replace_folder(file, folder / file.name)
                else:
                    if file.name == RESULTS:
                        flush_names(folder)
                    os.replace(file, folder / file.name)
            flush_names(folder)
    except WRITE_ERRORS as error:
        raise cannot_write(folder, error, last_checkpoint(folder)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_output(trainer: DistillationTrainer, folder: Path, estimate: Estimate | None = None) -> None:
    """Evaluate the trained model and write its folder. Every file is complete before it appears there.

    Args:
        trainer: after training, with its recipe.
        folder: the run's output folder; checkpoints in it stay.
        estimate: what the student was estimated to take, if its shape was chosen by that. It is compared with the
            files.

    Raises:
        PotstillError: the folder cannot be written. The last checkpoint is still there.
    """
    results = run_results(trainer)
    trainer.gather()
    if not trainer.args.should_save:
        return
    with atomic_output(folder) as staging:
        trainer.saved.save_pretrained(staging)
        trainer.processing_class.save_pretrained(staging)
        if estimate is not None:
            results["max_size"] = compared_size(staging, estimate)
        (staging / RECIPE).write_text(trainer.recipe, encoding="utf-8")
        (staging / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        headless = is_headless(trainer.student)
        recipe = recipe_values(trainer.args, OF_LANGUAGE_MODELS if headless else ())
        student = trainer.student.config
        same_class = trainer.teacher is not None and trainer.teacher.config.model_type == student.model_type
        card = model_card(student, recipe, results, trainer.corpus.manifest, same_class, headless)
        (staging / "README.md").write_text(card, encoding="utf-8")


def compared_size(folder: Path, estimate: Estimate) -> dict[str, Any]:
    """Return what a student was estimated to take, and the bytes of the weights in its folder. Both are printed."""
    written = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    line = f"weights on disk: {megabytes(written)}, estimated {megabytes(estimate.file_bytes)}"
    say(line)
    return {"estimate": estimate.as_record(), "file_bytes": written}


def run_results(trainer: DistillationTrainer) -> dict[str, Any]:
    """Return the measured results: held-out metrics before, during and after training, the loss curve and the cost."""
    history = trainer.state.log_history
    evaluations = [entry for entry in history if "eval_loss" in entry]
    averaged = trainer.average is not None and trainer.average.steps > 0
    measured = evaluations and evaluations[-1]["step"] == trainer.state.global_step and not averaged
    if len(trainer.corpus.validation) and not measured:
        trainer.evaluate()
        evaluations.append(history[-1])
    return {
        "held_out": {
            "initial": _metrics(evaluations[0]) if evaluations and evaluations[0]["step"] == 0 else None,
            "final": _metrics(evaluations[-1]) if evaluations else None,
        },
        "layer_search": trainer.layer_search,
        "cost": {
            "steps": trainer.state.global_step,
            "tokens": trainer.state.global_step * trainer.tokens_per_step,
            "seconds": round(trainer.run_control.clock.elapsed, 1),
            "processes": trainer.args.world_size,
            "hardware": hardware(trainer.args.device),
        },
        **({"teachers": teachers_of(trainer)} if len(trainer.teachers) > 1 else {}),
        **_quantized(trainer),
        **({"fixed_point": trainer.fixed_point.record} if trainer.fixed_point is not None else {}),
        **_narrowed(trainer),
        **({"averaged_weights": trainer.average.record()} if trainer.average is not None else {}),
        **({"emissions": emissions} if (emissions := measured_emissions(trainer)) is not None else {}),
        "changed_on_resume": trainer.changes,
        "parameters": sum(parameter.numel() for parameter in trainer.student.parameters()),
        "versions": versions("potstill", "torch", "transformers", "datasets", "tokenizers"),
        **trainer.losses.record(),
        "log_history": history,
    }


def teachers_of(trainer: DistillationTrainer) -> list[dict[str, Any]]:
    """Return the name and the weight of each teacher, and its time in a step if that was measured: see `Time`."""
    times = trainer.teacher_times.measured() if trainer.teacher_times is not None else None
    weights = trainer.step.ensemble.weights
    return [
        {
            "name": name_of_teacher(teacher, number),
            "weight": weights[number],
            **(times[number]._asdict() if times is not None else {}),
        }
        for number, teacher in enumerate(trainer.teachers)
    ]


def _quantized(trainer: DistillationTrainer) -> dict[str, Any]:
    """Return what a student was trained for, and its held-out metrics in float32. The others are as its export."""
    quantization = getattr(trainer.args, "quantization", None)
    if quantization is None:
        return {}
    found: dict[str, Any] = {"quantization": quantization, "held_out_in_float": None}
    if len(trainer.corpus.validation):
        with in_float(trainer.student):
            found["held_out_in_float"] = trainer.held_out(trainer.corpus.validation)
    return {"quantized": found}


def _narrowed(trainer: DistillationTrainer) -> dict[str, Any]:
    """Return the sizes of teacher and student if they differ."""
    if trainer.teacher is None:
        return {}
    teacher, student = (asdict(sizes_of(model.config)) for model in (trainer.teacher, trainer.student))
    return {} if teacher == student else {"sizes": {"teacher": teacher, "student": student}}


def _metrics(entry: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
