"""A `transformers.Trainer` whose every checkpoint can be loaded, and that continues the run that wrote it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_utils import set_seed

from potstill.arguments import RECIPE, RunArguments
from potstill.errors import PotstillError, first_line
from potstill.files import write_text
from potstill.live_line import say
from potstill.student.quiet import quiet_loading
from potstill.training.checkpoints import (
    WRITE_ERRORS,
    DamagedCheckpointError,
    cannot_write,
    last_checkpoint,
    load_run_state,
    load_trainer_state,
    load_weights,
    publish,
    save_run_state,
)
from potstill.training.run_record import RunRecord, own_defaults, plain


class CheckpointingTrainer(Trainer):
    """Write checkpoints atomically, and continue a run from one of them.

    A subclass defines which model is trained, and which further state of a run a checkpoint keeps (`run_state`).

    Args:
        model: as in `Trainer`.
        args: options of the run.
        options: other options of `Trainer`.

    Attributes:
        recipe: text of the recipe, written with every checkpoint so that the run can be resumed with it; "" for none.
        sources: fingerprints of the sources of the model, compared when the run is resumed.
    """

    control: Any
    lr_scheduler: Any
    optimizer: Any

    def __init__(self, model: nn.Module, args: RunArguments, **options: Any) -> None:
        super().__init__(model=model, args=args, **options)
        self.recipe = ""
        self.sources: dict[str, str] = {}
        self._record: RunRecord | None = None
        self._resumed = False
        self._reseeds = False  # whether the number of processes has changed, so that their random states fit no longer
        self._changed: set[str] = set()  # options that the resumption changed: of the optimiser and of the length
        self._staging: Path | None = None

    @property
    def resumed(self) -> bool:
        """Whether the training went on from a checkpoint."""
        return self._resumed

    @property
    def trained(self) -> PreTrainedModel:
        """The model whose weights are trained, checked and saved."""
        raise NotImplementedError

    @property
    def saved(self) -> PreTrainedModel:
        """The model as it is saved."""
        return self.trained

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the contents that the run reads, by name. A resumed run must have the same contents."""
        return self.sources

    @property
    def record(self) -> RunRecord:
        """The record of the run in its checkpoints. It is made at the first use, because hashing takes time."""
        if self._record is None:
            self._record = RunRecord.of(self.args, self.fingerprints)
        return self._record

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The changes at each resumption: the step, and for each changed option its values before and after."""
        return [] if self._record is None else list(self._record.changes)

    def run_state(self) -> dict[str, Any]:
        """Return the state of the run that a checkpoint keeps besides that of `Trainer`."""
        raise NotImplementedError

    def restore_run_state(self, state: dict[str, Any]) -> None:
        """Continue from what `run_state` returned."""
        raise NotImplementedError

    def _begin(self, checkpoint: str | None) -> TrainerState | None:
        """Begin a run, or continue the one that wrote a checkpoint. Return its state of `Trainer`; None if it is new.

        Raises:
            PotstillError: the checkpoint is damaged, or belongs to another run.
        """
        self._record, self._resumed, self._reseeds = None, checkpoint is not None, False
        if checkpoint is None:
            return None
        before, state = load_run_state(checkpoint), load_trainer_state(checkpoint)
        self.restore_run_state(before)
        self._check_record(RunRecord.from_state(before), state.global_step, checkpoint)
        return state

    def _check_record(self, record: RunRecord | None, step: int, checkpoint: str) -> None:
        """Check that a checkpoint belongs to this run, and note which options have changed since."""
        if record is None:
            self._log_line(f"{checkpoint} is of an earlier version, without a record of its options: none is compared.")
            return
        self._record = self.record.resumed(record, step, checkpoint, own_defaults(type(self.args)))
        self._changed = self.record.changed_since(record)
        if self._changed:
            changes = ", ".join(f"--{name} {self.record.options[name]}" for name in sorted(self._changed))
            self._log_line(f"From step {step + 1} on, these options have new values: {changes}.")
        self._reseeds = record.processes != self.args.world_size
        if not self._reseeds:
            name = f"rng_state_{self.args.process_index}.pth" if self.args.world_size > 1 else "rng_state.pth"
            if not (Path(checkpoint) / name).is_file():
                raise DamagedCheckpointError(f"The checkpoint {checkpoint} is incomplete: it has no {name}.")

    def _log_line(self, line: str) -> None:
        if self.is_world_process_zero():
            say(line)

    def checkpoint_folder(self) -> Path:
        """Return the folder of the checkpoint of the current step; it may not exist."""
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint to a temporary folder and move it atomically, so that every checkpoint can be loaded."""
        self._staging = Path(self.args.output_dir) / ".checkpoint.partial"
        staged, folder = self._staging / self.checkpoint_folder().name, self.checkpoint_folder()
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_run_state(staged, self.run_state() | {"run": vars(self.record)})
                publish(staged, folder, self.state, self.args, self._resumed)
                if self.recipe:
                    write_text(folder.with_name(RECIPE), self.recipe)
        except WRITE_ERRORS as error:
            raise cannot_write(folder, error, last_checkpoint(self.args.output_dir)) from error
        finally:
            if self.args.should_save:  # other processes may get here while this one still moves the folder
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            with quiet_loading():  # no progress bar for the few files of a model
                self.saved.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_trained(resume_from_checkpoint)

    def load_trained(self, checkpoint: str | Path) -> None:
        """Load the weights of a checkpoint into the model in training."""
        load_weights(self.trained, checkpoint)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Do as `Trainer` does, but log, evaluate and save at the intervals of this run, not of the earlier one."""
        result = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Do as `Trainer` does, but keep the options of the optimiser that were changed for the resumption."""
        if checkpoint is None:
            return
        new_options = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
        rates = list(getattr(self.lr_scheduler, "base_lrs", []))
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (PotstillError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a damaged file, or one of another optimiser, can raise many types of error
            raise DamagedCheckpointError(
                f"Cannot resume from {checkpoint}: its optimizer.pt or scheduler.pt cannot be used "
                f"({first_line(error)})."
            ) from error
        if not self._changed:
            return
        if not isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            changed = ", ".join(f"--{name}" for name in sorted(self._changed))
            raise PotstillError(
                f"With --lr_scheduler_type {plain(self.args.lr_scheduler_type)} no option of the optimiser or of the "
                f"length may change when a run is resumed, but {changed} did: give the value that the run began with."
            )
        self.lr_scheduler.base_lrs = rates
        factors = [factor(self.lr_scheduler.last_epoch) for factor in self.lr_scheduler.lr_lambdas]
        for group, options, rate, factor in zip(self._groups, new_options, rates, factors, strict=True):
            group.update({name: value for name, value in options.items() if name != "lr"} | {"lr": rate * factor})

    @property
    def _groups(self) -> list[dict[str, Any]]:
        assert self.optimizer is not None
        return self.optimizer.param_groups

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._reseeds:  # a new process would draw the numbers of the first steps again
            place = [self.args.seed, self.state.global_step, self.args.process_index]
            set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            return
        try:
            super()._load_rng_state(checkpoint)
        except Exception as error:  # a damaged file can raise many types of error
            raise DamagedCheckpointError(
                f"Cannot resume from {checkpoint}: its random state cannot be used ({first_line(error)})."
            ) from error

    def _load_best_model(self) -> None:
        self.load_trained(Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}")
