"""Checkpoints: find the newest good one, and write new ones so that every existing checkpoint can be loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from potstill.errors import PotstillError, advice, first_line
from potstill.files import flush, recover_folder, recover_folders, replace_folder
from potstill.json_files import read_object
from potstill.live_line import say
from potstill.locks import check_lock
from potstill.permissions import share
from potstill.small_files import NotSmallError, check_regular, read_small
from potstill.training.overwriting import is_overwriting, replacing_old_output

RUN_STATE = "potstill_state.json"  # the part of the state that `Trainer` does not save
TRAINER_STATE = "trainer_state.json"
CHECKSUMS = "SHA256SUMS"  # in the format that `sha256sum --check` reads
PARTS = (TRAINER_STATE, RUN_STATE, "optimizer.pt", "scheduler.pt")
"""Every checkpoint has these files. Without one of them, a resumed run would differ from an uninterrupted one."""
FORMAT = 2
"""Version of the checkpoint format. The first one had no checksums and did not record what was trained."""
OBJECTIVE = "objective.safetensors"  # modules that the losses train besides the student, such as projections
SHARDED_OPTIMIZER = "optimizer_0"  # folder in which `accelerate` has PyTorch write the optimiser of a sharded student
LAYER_SEARCH = "layer_search.json"  # what was measured to choose the teacher's layers
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save raises a RuntimeError on a full disk

_verified: set[tuple[Path, int]] = set()


class DamagedCheckpointError(PotstillError):
    """A checkpoint lacks a file, or one of its files has changed since it was written."""


def last_checkpoint(output_dir: str | Path | None) -> Path | None:
    """Return the newest checkpoint of a run, or None. Checkpoints that the run is going to overwrite do not count."""
    if not output_dir or not Path(output_dir).is_dir() or is_overwriting(output_dir):
        return None
    found = get_last_checkpoint(str(output_dir))
    return Path(found) if found else None


def find_checkpoint(wanted: str | Path | bool | None, output_dir: str | None) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` names, verified, or None to start a new run.

    If a process was killed while it replaced a checkpoint, the old checkpoint is restored first.

    Args:
        wanted: ``true`` for the newest checkpoint; ``auto`` for the newest good one, or None if there is none; or the
            folder of a checkpoint.
        output_dir: output folder of the run.

    Raises:
        PotstillError: there is no such checkpoint, or it is damaged. The message names the newest good one, if any.
    """
    if not is_resuming(wanted):
        return None
    value = str(wanted).lower()
    if value not in ("true", "auto"):
        folder = Path(str(wanted)).expanduser()
        recover_folder(folder)
        if not (folder / RUN_STATE).exists() and (inside := _newest_good(folder, log=False)) is not None:
            raise PotstillError(
                f"--resume_from_checkpoint {folder} is the folder of a run, not of a checkpoint: resume with "
                f"--resume_from_checkpoint {inside}."
            )
        if not folder.is_dir():
            raise PotstillError(f"--resume_from_checkpoint {folder} is not a folder: name a checkpoint, or auto.")
        _verify_or_suggest(folder)
        return folder
    if output_dir:
        recover_folders(Path(output_dir), "checkpoint-*")
    if value == "auto":
        return _newest_good(output_dir)
    newest = last_checkpoint(output_dir)
    if newest is None:
        raise PotstillError(f"--resume_from_checkpoint true: there is no checkpoint in {output_dir}.")
    _verify_or_suggest(newest)
    return newest


def is_resuming(wanted: str | Path | bool | None) -> bool:
    """Return whether `--resume_from_checkpoint` asks for a checkpoint at all."""
    return wanted is not None and str(wanted).lower() not in ("", "false", "none")


def _newest_good(output_dir: str | Path | None, log: bool = True) -> Path | None:
    for folder in reversed(_checkpoints(output_dir)):
        try:
            verify(folder)
        except DamagedCheckpointError as error:
            if log and int(os.environ.get("RANK", "0")) == 0:
                say(f"Skipped: {error}")
        else:
            return folder
    return None


def _checkpoints(output_dir: str | Path | None) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    if last_checkpoint(output_dir) is None:
        return []
    found = [path for path in Path(output_dir or "").glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def _verify_or_suggest(folder: Path) -> None:
    """Verify a checkpoint. If it is damaged, the error names the newest good one in the same folder."""
    try:
        verify(folder)
    except DamagedCheckpointError as error:
        good = _newest_good(folder.parent, log=False)
        suggestion = (
            "there is no other good one, so start the run again"
            if good is None
            else f"resume with --resume_from_checkpoint {good}"
        )
        raise DamagedCheckpointError(f"{str(error).rstrip('.')}; {suggestion}.") from error


def verify(folder: Path) -> None:
    """Check that a checkpoint is complete, and that no file has changed since it was written.

    Raises:
        DamagedCheckpointError: a file is missing or has changed; the message names it.
    """
    sums = folder / CHECKSUMS
    key = (folder.resolve(), sums.stat().st_mtime_ns if sums.is_file() else 0)
    if key in _verified:
        return
    state = load_run_state(folder)
    parts = [f"{SHARDED_OPTIMIZER}/.metadata" if name == "optimizer.pt" else name for name in PARTS]
    parts = parts if (folder / SHARDED_OPTIMIZER).is_dir() else list(PARTS)
    for name in parts:
        if not (folder / name).is_file():
            raise DamagedCheckpointError(f"The checkpoint {folder} is incomplete: it has no {name}.")
    if not sums.is_file():
        if state["format"] >= FORMAT:
            raise DamagedCheckpointError(f"The checkpoint {folder} is incomplete: it has no {CHECKSUMS}.")
        return  # an earlier version wrote it
    try:
        lines = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
        expected = {name: digest for digest, name in lines}
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"The checkpoint {folder} is damaged: {CHECKSUMS} cannot be read.") from error
    missing = [name for name in parts if name not in expected]
    if missing:
        raise DamagedCheckpointError(f"The checkpoint {folder} is damaged: {CHECKSUMS} has no entry for {missing[0]}.")
    for name, digest in expected.items():
        try:
            found = _sha256(folder / name)
        except NotSmallError as error:
            raise DamagedCheckpointError(f"The checkpoint {folder} is damaged: {first_line(error)}.") from error
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise DamagedCheckpointError(f"The checkpoint {folder} is incomplete: {name}: {reason}.") from error
        if found != digest:
            raise DamagedCheckpointError(
                f"The checkpoint {folder} is damaged: {name} has changed since it was written (its SHA-256 differs)."
            )
    _verified.add(key)


def write_checksums(folder: Path) -> None:
    """Write a file with the SHA-256 of every file of a checkpoint."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(name for name in files if name != CHECKSUMS)
    text = "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_run_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write the state that only potstill needs: see `RunControl.run_state` and `RunRecord`."""
    (checkpoint / RUN_STATE).write_text(json.dumps({"format": FORMAT} | state, indent=1) + "\n", encoding="utf-8")


def load_run_state(checkpoint: str | Path) -> dict[str, Any]:
    """Read what `save_run_state` wrote.

    Raises:
        DamagedCheckpointError: the file is missing or damaged.
    """
    file = Path(checkpoint) / RUN_STATE
    try:
        state = {"format": 1} | json.loads(read_small(file).decode("utf-8"))
        # Earlier versions had another name for excluded seconds; the earliest ones did not count them.
        state.setdefault("excluded_seconds", state.get("stood_still_seconds", 0.0))
        numbers = ("elapsed_seconds", "excluded_seconds", "progress")
        return state | {"format": int(state["format"])} | {name: float(state[name]) for name in numbers}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, NotSmallError) as error:
        raise DamagedCheckpointError(
            f"{checkpoint} is not a checkpoint of potstill: it has no usable {RUN_STATE}."
        ) from error


def load_trainer_state(checkpoint: str | Path) -> TrainerState:
    """Read the state that `Trainer` keeps in a checkpoint.

    Raises:
        DamagedCheckpointError: the file is missing or damaged.
    """
    file = Path(checkpoint) / TRAINER_STATE
    try:
        state = TrainerState.load_from_json(str(file))
        if not isinstance(state.global_step, int) or state.global_step < 0:
            raise ValueError(f"global_step is {state.global_step!r}")
        return state
    except Exception as error:  # a damaged file can raise many types of error in the library
        raise DamagedCheckpointError(f"{checkpoint} is not a checkpoint: it has no usable {TRAINER_STATE}.") from error


def load_weights(
    model: PreTrainedModel, checkpoint: str | Path, load: Callable[[dict[str, Tensor]], Any] | None = None
) -> None:
    """Copy the weights of a checkpoint into a model of the same shape.

    Args:
        model: the model.
        checkpoint: folder of the checkpoint.
        load: takes the state of the model in the checkpoint; the model's own `load_state_dict` if not given.

    Raises:
        PotstillError: the checkpoint holds another model, or cannot be read.
    """
    try:
        saved = type(model).from_pretrained(checkpoint, use_safetensors=True, dtype=model.dtype)
        (load or model.load_state_dict)(saved.state_dict())
    except Exception as error:  # a foreign or damaged file can raise many types of error in several libraries
        raise PotstillError(f"Cannot resume from {checkpoint}: {first_line(error)}.") from error


def save_modules(modules: nn.Module, checkpoint: str | Path) -> None:
    """Write the modules that the losses train besides the student. Write no file if there are none."""
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
            f"Cannot resume from {checkpoint}: its losses trained other projections than those of this run. Resume "
            "with the losses that the checkpoint was written with."
        )
    modules.load_state_dict(state)


def save_layer_search(search: dict[str, Any] | None, checkpoint: str | Path) -> None:
    """Write the record of the search for layers. Write no file if there was none."""
    if search is not None:
        (Path(checkpoint) / LAYER_SEARCH).write_text(json.dumps(search) + "\n", encoding="utf-8")


def load_layer_search(checkpoint: str | Path) -> dict[str, Any] | None:
    """Read what `save_layer_search` wrote; None if it wrote no file.

    Raises:
        PotstillError: the file cannot be read.
    """
    file = Path(checkpoint) / LAYER_SEARCH
    return read_object(file, "The record of the search for layers", finite=False) if file.is_file() else None


def publish(staged: Path, folder: Path, state: TrainerState, args: TrainingArguments, resumed: bool = False) -> None:
    """Move a complete checkpoint to its place, then remove the oldest ones, as `save_total_limit` requires.

    A resumed run also removes the checkpoints of later steps. They belong to training that it did not continue.
    """
    if state.best_global_step:
        best = folder.with_name(f"checkpoint-{state.best_global_step}")
        if best == folder or best.exists():
            state.best_model_checkpoint = str(best)
            state.save_to_json(str(staged / TRAINER_STATE))
    check_lock(folder.parent)
    share(staged)
    write_checksums(staged)
    _make_newest(staged, folder)  # before it gets its name: the run may be killed then
    flush(staged)  # before the folder counts as a checkpoint: power may fail
    with replacing_old_output(folder.parent):
        replace_folder(staged, folder)
    # A run can resume from an earlier step. The later checkpoints must go: `true` would select one of them next time.
    for later in _checkpoints(folder.parent) if resumed else []:
        if int(later.name.partition("-")[2]) > state.global_step:
            say(f"Removed {later}: the run was resumed from an earlier step.")
            shutil.rmtree(later, ignore_errors=True)
    rotate(folder.parent, state, args)


def rotate(output_dir: Path, state: TrainerState, args: TrainingArguments) -> None:
    """Remove the oldest checkpoints of a run, as `save_total_limit` requires. The newest one and the best one stay."""
    rotate_checkpoints(
        output_dir=str(output_dir),
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )


def _make_newest(staged: Path, folder: Path) -> None:
    """Give a checkpoint the latest time of all. They are rotated by time, and the clock may have been set back.

    Args:
        staged: the checkpoint.
        folder: where it will be.
    """
    latest = max((path.stat().st_mtime for path in _checkpoints(folder.parent) if path != folder), default=0.0)
    if staged.stat().st_mtime < latest + 1:  # `rotate_checkpoints` goes by the steps if all times are within a second
        os.utime(staged, (latest + 1, latest + 1))


def cannot_write(folder: Path, error: BaseException, last: Path | None) -> PotstillError:
    """Return the error for a checkpoint that could not be written. It names the last good checkpoint."""
    # torch.save turns any failure into a RuntimeError. Its cause may be an error of the operating system.
    system = next((cause for cause in (error, error.__cause__, error.__context__) if isinstance(cause, OSError)), None)
    remedy = (
        "check that the disk is not full" if isinstance(error, RuntimeError) and not system else advice(system or error)
    )
    return PotstillError(f"Could not write {folder} ({first_line(error)}): {remedy}; {last_checkpoint_message(last)}.")


def last_checkpoint_message(last: Path | None) -> str:
    """Return the last clause of an error message: which checkpoint a failed run can be resumed from."""
    return "no earlier checkpoint exists" if last is None else f"the last good checkpoint is {last}"
