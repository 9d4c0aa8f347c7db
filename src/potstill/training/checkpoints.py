"""Checkpoints: finding them, and writing them so that one that exists can be loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from potstill.errors import PotstillError, first_line
from potstill.files import recover_folder, recover_folders, replace_folder

RUN_STATE = "potstill_state.json"  # what a run needs besides the Trainer's own state
OBJECTIVE = "objective.safetensors"  # what the losses train besides the student, projections say
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save tells a full disk by a RuntimeError


def last_checkpoint(output_dir: str | Path | None) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    found = get_last_checkpoint(str(output_dir)) if output_dir and Path(output_dir).is_dir() else None
    return Path(found) if found else None


def find_checkpoint(wanted: str | Path | bool, output_dir: str | None) -> Path:
    """Return the checkpoint that `--resume_from_checkpoint` means: a folder, or with ``true`` the newest.

    One that a kill left half-way between being grown, or written anew, and its old state is put back into that.

    Raises:
        PotstillError: there is none.
    """
    if str(wanted).lower() == "true":
        if output_dir:
            recover_folders(Path(output_dir), "checkpoint-*")
        newest = last_checkpoint(output_dir)
        if newest is None:
            raise PotstillError(f"--resume_from_checkpoint true: there is no checkpoint in {output_dir}.")
        return newest
    folder = Path(str(wanted))
    recover_folder(folder)
    if not (folder / "trainer_state.json").is_file():
        raise PotstillError(f"--resume_from_checkpoint {folder} is no checkpoint: it has no trainer_state.json.")
    return folder


def save_run_state(checkpoint: Path, state: dict[str, float]) -> None:
    """Write what potstill itself must remember: see `RunControl.run_state`."""
    (checkpoint / RUN_STATE).write_text(json.dumps(state) + "\n")


def load_run_state(checkpoint: str | Path) -> dict[str, float]:
    """Read what `save_run_state` wrote.

    Raises:
        PotstillError: the file is not there or not whole.
    """
    file = Path(checkpoint) / RUN_STATE
    try:
        state = json.loads(file.read_text())
        state = {"stood_still_seconds": 0.0} | state  # versions before this one did not tell them apart
        return {name: float(state[name]) for name in ("elapsed_seconds", "stood_still_seconds", "progress")}
    except (OSError, ValueError, KeyError) as error:
        raise PotstillError(f"{checkpoint} is no checkpoint of potstill: it has no usable {RUN_STATE}.") from error


def load_weights(model: PreTrainedModel, checkpoint: str | Path) -> None:
    """Copy a checkpoint's weights into a model of the same shape.

    Raises:
        PotstillError: the checkpoint holds another model, or cannot be read.
    """
    try:
        saved = type(model).from_pretrained(checkpoint, use_safetensors=True, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
    except WRITE_ERRORS as error:
        raise PotstillError(f"Cannot resume from {checkpoint}: {first_line(error)}.") from error


def save_modules(modules: nn.Module, checkpoint: str | Path) -> None:
    """Write what the losses train besides the student; no file if there is nothing."""
    state = {name: tensor.contiguous() for name, tensor in modules.state_dict().items()}
    if state:
        save_file(state, Path(checkpoint) / OBJECTIVE)


def load_modules(modules: nn.Module, checkpoint: str | Path) -> None:
    """Read what `save_modules` wrote.

    Raises:
        PotstillError: the checkpoint was written with other losses, or cannot be read.
    """
    file, wanted = Path(checkpoint) / OBJECTIVE, modules.state_dict()
    try:
        state = load_file(file) if file.is_file() else {}
    except WRITE_ERRORS as error:
        raise PotstillError(f"Cannot resume from {checkpoint}: {first_line(error)}.") from error
    if {name: tensor.shape for name, tensor in state.items()} != {name: t.shape for name, t in wanted.items()}:
        raise PotstillError(
            f"Cannot resume from {checkpoint}: its losses trained other projections than those of this run; resume "
            "with the losses that the checkpoint was written with."
        )
    modules.load_state_dict(state)


def publish(staged: Path, folder: Path, state: TrainerState, args: TrainingArguments) -> None:
    """Move a complete checkpoint to its place, then let the oldest go, as `save_total_limit` says."""
    if state.best_global_step:
        best = folder.with_name(f"checkpoint-{state.best_global_step}")
        if best == folder or best.exists():
            state.best_model_checkpoint = str(best)
            state.save_to_json(str(staged / "trainer_state.json"))
    for path in staged.iterdir():  # on the disk before it is called a checkpoint: power may fail
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    replace_folder(staged, folder)
    rotate_checkpoints(
        output_dir=str(folder.parent),
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )


def cannot_write(folder: Path, error: BaseException, last: Path | None) -> PotstillError:
    """Return the error of a checkpoint that could not be written, naming the one that is still there."""
    return PotstillError(f"Could not write {folder} ({first_line(error)}): free some disk space; {what_is_left(last)}.")


def what_is_left(last: Path | None) -> str:
    """Return the end of an error's sentence: which checkpoint a run that failed can be resumed from."""
    return "no earlier checkpoint exists" if last is None else f"the last good checkpoint is {last}"
