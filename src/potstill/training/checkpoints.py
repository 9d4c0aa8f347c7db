"""Checkpoints: finding the newest good one, and writing them so that one that exists can be loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from potstill.errors import PotstillError, advice, first_line
from potstill.files import recover_folder, recover_folders, replace_folder
from potstill.permissions import share
from potstill.training.overwriting import is_overwriting, replacing_old_output

RUN_STATE = "potstill_state.json"  # what a run needs besides the Trainer's own state
TRAINER_STATE = "trainer_state.json"
CHECKSUMS = "SHA256SUMS"  # in the form that `sha256sum --check` reads
PARTS = (TRAINER_STATE, RUN_STATE, "optimizer.pt", "scheduler.pt")
"""Files without which a run would go on otherwise than it would have without the interruption."""
FORMAT = 2
"""Of checkpoints. The first format had no checksums and did not record what was trained."""
OBJECTIVE = "objective.safetensors"  # what the losses train besides the student, projections say
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save tells a full disk by a RuntimeError

_verified: set[tuple[Path, int]] = set()


class DamagedCheckpointError(PotstillError):
    """A checkpoint lacks a part, or one of its files is not what was written."""


def last_checkpoint(output_dir: str | Path | None) -> Path | None:
    """Return the newest checkpoint of a run, or None. Those that the run is going to overwrite are not its own."""
    if not output_dir or not Path(output_dir).is_dir() or is_overwriting(output_dir):
        return None
    found = get_last_checkpoint(str(output_dir))
    return Path(found) if found else None


def find_checkpoint(wanted: str | Path | bool | None, output_dir: str | None) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` means, verified, or None to start from the start.

    A checkpoint that a kill left half-way between two states is put back into the old one first.

    Args:
        wanted: ``true`` is the newest one; ``auto`` the newest good one, or none where there is none; else a folder.
        output_dir: of the run.

    Raises:
        PotstillError: there is none, or it is damaged. The message then names the newest good one.
    """
    if not is_resuming(wanted):
        return None
    word = str(wanted).lower()
    if word not in ("true", "auto"):
        folder = Path(str(wanted)).expanduser()
        recover_folder(folder)
        if not (folder / RUN_STATE).exists() and (inside := _newest_good(folder, tell=False)) is not None:
            raise PotstillError(
                f"--resume_from_checkpoint {folder} is the folder of a run, not of a checkpoint: resume with "
                f"--resume_from_checkpoint {inside}."
            )
        if not folder.is_dir():
            raise PotstillError(f"--resume_from_checkpoint {folder} is no folder: name a checkpoint, or auto.")
        _verify_or_offer(folder)
        return folder
    if output_dir:
        recover_folders(Path(output_dir), "checkpoint-*")
    if word == "auto":
        return _newest_good(output_dir)
    newest = last_checkpoint(output_dir)
    if newest is None:
        raise PotstillError(f"--resume_from_checkpoint true: there is no checkpoint in {output_dir}.")
    _verify_or_offer(newest)
    return newest


def is_resuming(wanted: str | Path | bool | None) -> bool:
    """Return whether `--resume_from_checkpoint` asks for a checkpoint at all."""
    return wanted is not None and str(wanted).lower() not in ("", "false", "none")


def _newest_good(output_dir: str | Path | None, tell: bool = True) -> Path | None:
    for folder in reversed(_checkpoints(output_dir)):
        try:
            verify(folder)
        except DamagedCheckpointError as error:
            if tell and int(os.environ.get("RANK", "0")) == 0:
                print(f"Passed over: {error}", file=sys.stderr, flush=True)
        else:
            return folder
    return None


def _checkpoints(output_dir: str | Path | None) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    if last_checkpoint(output_dir) is None:
        return []
    found = [path for path in Path(output_dir or "").glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def _verify_or_offer(folder: Path) -> None:
    """Verify a checkpoint; where it is damaged, name the newest good one beside it."""
    try:
        verify(folder)
    except DamagedCheckpointError as error:
        good = _newest_good(folder.parent, tell=False)
        offer = (
            "no other good one is left, so start the run again"
            if good is None
            else f"resume with --resume_from_checkpoint {good}"
        )
        raise DamagedCheckpointError(f"{str(error).rstrip('.')}; {offer}.") from error


def verify(folder: Path) -> None:
    """Make sure that a checkpoint is whole, and that every file of it is what was written.

    Raises:
        DamagedCheckpointError: it is not; the file is named.
    """
    sums = folder / CHECKSUMS
    key = (folder.resolve(), sums.stat().st_mtime_ns if sums.is_file() else 0)
    if key in _verified:
        return
    state = load_run_state(folder)
    for name in PARTS:
        if not (folder / name).is_file():
            raise DamagedCheckpointError(f"The checkpoint {folder} is not whole: it has no {name}.")
    if not sums.is_file():
        if state["format"] >= FORMAT:
            raise DamagedCheckpointError(f"The checkpoint {folder} is not whole: it has no {CHECKSUMS}.")
        return  # an earlier version wrote it
    try:
        lines = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
        expected = {name: digest for digest, name in lines}
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"The checkpoint {folder} is damaged: {CHECKSUMS} cannot be read.") from error
    unsummed = [name for name in PARTS if name not in expected]
    if unsummed:
        raise DamagedCheckpointError(f"The checkpoint {folder} is damaged: {CHECKSUMS} says nothing of {unsummed[0]}.")
    for name, digest in expected.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise DamagedCheckpointError(f"The checkpoint {folder} is not whole: {name}: {reason}.") from error
        if found != digest:
            raise DamagedCheckpointError(
                f"The checkpoint {folder} is damaged: {name} is not what was written (its SHA-256 is another)."
            )
    _verified.add(key)


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file of a checkpoint beside them."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    text = "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_run_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write what potstill itself must remember: see `RunControl.run_state` and `RunRecord`."""
    (checkpoint / RUN_STATE).write_text(json.dumps({"format": FORMAT} | state, indent=1) + "\n", encoding="utf-8")


def load_run_state(checkpoint: str | Path) -> dict[str, Any]:
    """Read what `save_run_state` wrote.

    Raises:
        DamagedCheckpointError: the file is not there or not whole.
    """
    file = Path(checkpoint) / RUN_STATE
    try:
        state = {"format": 1} | json.loads(file.read_text(encoding="utf-8"))
        # Earlier versions had another name for excluded seconds; the earliest ones did not count them.
        state.setdefault("excluded_seconds", state.get("stood_still_seconds", 0.0))
        numbers = ("elapsed_seconds", "excluded_seconds", "progress")
        return state | {"format": int(state["format"])} | {name: float(state[name]) for name in numbers}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(
            f"{checkpoint} is no checkpoint of potstill: it has no usable {RUN_STATE}."
        ) from error


def load_trainer_state(checkpoint: str | Path) -> TrainerState:
    """Read the state that `Trainer` keeps in a checkpoint.

    Raises:
        DamagedCheckpointError: the file is not there or not whole.
    """
    file = Path(checkpoint) / TRAINER_STATE
    try:
        state = TrainerState.load_from_json(str(file))
        if not isinstance(state.global_step, int) or state.global_step < 0:
            raise ValueError(f"global_step is {state.global_step!r}")
        return state
    except Exception as error:  # whatever a damaged file provokes in the library
        raise DamagedCheckpointError(f"{checkpoint} is no checkpoint: it has no usable {TRAINER_STATE}.") from error


def load_weights(model: PreTrainedModel, checkpoint: str | Path) -> None:
    """Copy a checkpoint's weights into a model of the same shape.

    Raises:
        PotstillError: the checkpoint holds another model, or cannot be read.
    """
    try:
        saved = type(model).from_pretrained(checkpoint, use_safetensors=True, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
    except Exception as error:  # whatever a foreign or damaged file provokes in several libraries
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


def publish(staged: Path, folder: Path, state: TrainerState, args: TrainingArguments, resumed: bool = False) -> None:
    """Move a complete checkpoint to its place, then let the oldest go, as `save_total_limit` says.

    A resumed run also removes the checkpoints of later steps. They are of the training that it did not go on from.
    """
    if state.best_global_step:
        best = folder.with_name(f"checkpoint-{state.best_global_step}")
        if best == folder or best.exists():
            state.best_model_checkpoint = str(best)
            state.save_to_json(str(staged / TRAINER_STATE))
    share(staged)
    write_checksums(staged)
    for path in staged.iterdir():  # on the disk before it is called a checkpoint: power may fail
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    with replacing_old_output(folder.parent):
        replace_folder(staged, folder)
    # A run that was resumed from an earlier step leaves what it had reached before: the next `true` would take that.
    for later in _checkpoints(folder.parent) if resumed else []:
        if int(later.name.partition("-")[2]) > state.global_step:
            print(f"Removed {later}: the run has gone on from before it.", file=sys.stderr, flush=True)
            shutil.rmtree(later, ignore_errors=True)
    rotate_checkpoints(
        output_dir=str(folder.parent),
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )


def cannot_write(folder: Path, error: BaseException, last: Path | None) -> PotstillError:
    """Return the error of a checkpoint that could not be written, naming the one that is still there."""
    # torch.save tells any trouble by a RuntimeError; the system's own error is the cause of it, if there is one.
    system = next((cause for cause in (error, error.__cause__, error.__context__) if isinstance(cause, OSError)), None)
    mend = (
        "check that the disk is not full" if isinstance(error, RuntimeError) and not system else advice(system or error)
    )
    return PotstillError(f"Could not write {folder} ({first_line(error)}): {mend}; {what_is_left(last)}.")


def what_is_left(last: Path | None) -> str:
    """Return the end of an error's sentence: which checkpoint a run that failed can be resumed from."""
    return "no earlier checkpoint exists" if last is None else f"the last good checkpoint is {last}"
