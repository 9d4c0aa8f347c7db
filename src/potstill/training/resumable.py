"""A `transformers.Trainer` that ends at a signal or a limit, resumes, and refuses losses that are not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput

from potstill.arguments import RunArguments
from potstill.errors import PotstillError
from potstill.locks import locked
from potstill.precision.fixed_point import FixedPointFormats
from potstill.training.checkpointing import CheckpointingTrainer
from potstill.training.checkpoints import find_checkpoint, last_checkpoint, rotate
from potstill.training.connection import connected
from potstill.training.control import RunControl, TrainingInterrupted
from potstill.training.fixed_point import FixedPointTraining
from potstill.training.hub import make_repository
from potstill.training.kept_memory import kept_memory
from potstill.training.loading_workers import outliving_signals
from potstill.training.loss_watch import EndOfStep, LossWatch, bad_step, check_skips, not_finite
from potstill.training.memory import fitting_memory
from potstill.training.progress import ProgressLines
from potstill.training.schedule import schedule_by_progress
from potstill.training.sharding import all_finite, use_plugin
from potstill.training.waiting_threads import WaitingThreads


class EpochSampler(Protocol):
    """A sampler of indices. Their order depends on the seed and the epoch alone, so that a run can be resumed."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose indices the next iteration yields."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class ResumableTrainer(CheckpointingTrainer):
    """Train a module whose forward returns named losses. An interrupted run can be resumed without loss of training.

    A subclass defines which model is trained, how much a step reads (the properties below), and how to evaluate.

    Args:
        model: run for each micro-batch. Its forward returns named scalars: `loss` is minimised, the others are logged.
        args: options of the run.
        sampler: the order in which the training data are read.
        headline: printed before the first step.
        evaluation_line: turns the logs of an evaluation into the line to print; returns "" for other logs.
        stop_at: share of the training at which to stop with a checkpoint.
        callbacks: as in `Trainer`.
        options: other options of `Trainer`, such as the data and `processing_class`.

    Attributes:
        sampler: as given.
        progress_lines: shows the steps.
        run_control: ends the run; `run_control.clock.elapsed` is the seconds trained so far.
        losses: the losses of each step: spikes, and steps that were skipped.
        fixed_point: rounds to fixed-point numbers; None without `--fixed_point`.
        unit: the unit, in the plural, in which data are counted; the logged speed is called `{unit}_per_second`.
    """

    unit = "rows"
    shards = False  # whether the student can be sharded
    model_accepts_loss_kwargs: bool

    def __init__(
        self,
        model: nn.Module,
        args: RunArguments,
        sampler: EpochSampler,
        headline: str,
        evaluation_line: Callable[[dict[str, float]], str],
        stop_at: float = 1.0,
        callbacks: list[TrainerCallback] | None = None,
        **options: Any,
    ) -> None:
        if args.fsdp and not self.shards:
            raise PotstillError("--fsdp is for the student of a language model: leave it out.")
        self.sampler = sampler
        self.run_control = RunControl(args.minutes, stop_at)
        super().__init__(model=model, args=args, callbacks=[self.run_control, *(callbacks or [])], **options)
        # The loss of a step is the mean over its micro-batches, whatever arguments the module's forward takes.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.progress_lines = ProgressLines(headline, evaluation_line, self.unit, self._how_far)
        self.add_callback(self.progress_lines)
        self.add_callback(WaitingThreads())
        self.fixed_point: FixedPointTraining | None = None
        if args.fixed_point is not None:
            formats = FixedPointFormats.read(args.fixed_point)
            self.fixed_point = FixedPointTraining(self.trained, formats, args.seed)
            self.add_callback(self.fixed_point)
        self.losses = LossWatch()
        self._gradient_norm: Tensor | float | None = None
        self.add_callback(EndOfStep(self._end_step))
        self._window_started, self._window_step = time.monotonic(), 0

    def init_hf_repo(self, *arguments: Any, **options: Any) -> None:
        """Make the repository of `--push_to_hub`, before any training.

        Args:
            arguments: those of `Trainer`, which differ between its versions.
            options: as above.

        Raises:
            PotstillError: the hub does not make it.
        """
        self.hub_model_id = make_repository(self.args)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch: as many as `Trainer` takes."""
        raise NotImplementedError

    @property
    def units_per_step(self) -> int:
        """Number of units that all processes together read for one step of the optimiser."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train, as `Trainer.train` does, to the end or to the limit that comes first.

        Args:
            resume_from_checkpoint: see `find_checkpoint`: true, ``auto``, or a checkpoint's folder.
            options: as in `Trainer.train`.

        Raises:
            TrainingInterrupted: SIGINT or SIGTERM came. The run can be resumed from a checkpoint of the last step.
            PotstillError: the loss is not finite; a step does not fit into memory; another process trains into the
                output folder; or the checkpoint is damaged or belongs to another run. Existing checkpoints stay.
        """
        with locked(self.args.output_dir, break_lock=self.args.break_lock):
            checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
            return self._train(None if checkpoint is None else str(checkpoint), **options)

    def _train(self, checkpoint: str | None, **options: Any) -> Any:
        first_step = 0
        state = self._begin(checkpoint)
        if checkpoint and state:
            finished = state.global_step >= self.args.steps_in_all(self.steps_per_epoch)
            # Only the output may be missing in this case. `Trainer` would take one step too many.
            if finished or self.run_control.clock.spent:
                self._log_line(f"{checkpoint} is already at the end of training: there is nothing left to train.")
                self.state = state
                self.trained.to(self.args.device)
                self._load_from_checkpoint(checkpoint)
                own = Path(checkpoint).resolve().parent == Path(self.args.output_dir).resolve()
                if own and self.args.should_save:  # the run may have been killed before it did so
                    rotate(Path(checkpoint).parent, state, self.args)
                return TrainOutput(state.global_step, 0.0, {})
            # With several processes, `Trainer` does not set the epoch of the sampler when it resumes inside an epoch.
            self.sampler.set_epoch(state.global_step // self.steps_per_epoch)
            first_step = state.global_step
        with self.run_control.signals.catching(), self._evaluating_at_start(first_step == 0):
            self.run_control.start()
            self._window_started, self._window_step = time.monotonic(), first_step
            # The optimiser is included: the first step allocates its state.
            with fitting_memory(self.args), kept_memory(self.args.device), connected(self.args):
                try:
                    result = super().train(resume_from_checkpoint=checkpoint, **options)
                finally:
                    self.progress_lines.close()
        if (number := self._ending_signal) is not None:
            raise TrainingInterrupted(self.checkpoint_folder(), number, self.state.global_step)
        self._check_finite(weights=True)
        return result

    @contextmanager
    def _evaluating_at_start(self, at_start: bool) -> Iterator[None]:
        """Keep a resumed run from evaluating once more, as `Trainer` would: its log would not be that of one run."""
        wanted = self.args.eval_on_start
        self.args.eval_on_start = wanted and at_start
        try:
            yield
        finally:
            self.args.eval_on_start = wanted

    @property
    def _ending_signal(self) -> int | None:
        """Number of the signal that ends the run before its time; None if there is none."""
        return self.run_control.received_signal if self.run_control.progress(self.state) < 1 else None

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Do as `Trainer` does, but never remove the checkpoint from which an interrupted run will be resumed."""
        best = self.state.best_model_checkpoint
        if self._ending_signal is not None:
            self.state.best_model_checkpoint = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best

    def compute_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the named losses of a micro-batch.

        Args:
            model: the given module, inside the wrappers of `Trainer`.
            inputs: a micro-batch of the data, on the device.
        """
        return model(**inputs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch, and keep its terms for the log without waiting for the device."""
        losses = self.compute_losses(model, inputs)
        self.losses.add(losses)
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def _end_step(self) -> None:
        """Keep the losses of a step whose gradient is complete. With `on_nan skip` a bad step changes no weight."""
        step, scaled = self.state.global_step + 1, getattr(self.accelerator, "scaler", None) is not None
        # In fp16 some steps have an infinite gradient on the way to a good scale; PyTorch's scaler skips them itself.
        norm, self._gradient_norm = None if scaled else self._gradient_norm, None
        if self.args.on_nan == "skip":
            finite = self.accelerator.gather(self.losses.is_finite(norm)[None])  # all processes decide alike
            if not finite.all():
                self.losses.skip_step(step)
                if not scaled:
                    self.model.zero_grad(set_to_none=True)  # optimisers pass over parameters without a gradient
                self._log_line(f"step {step:,}: skipped, because its loss or gradient is not a finite number")
                check_skips(self.losses.skipped, self.args.max_skipped_steps, last_checkpoint(self.args.output_dir))
                return
        self.losses.end_step(step, norm)
        if self.losses.full:
            self._check_finite()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer.log` does. Training losses are logged with their terms, the speed and the seconds left."""
        if "loss" in logs:
            self._check_finite()
            means = self.losses.means()
            # The mean of `Trainer` leaves out the steps before an interruption, and is NaN for ever after one NaN.
            logs["loss"] = means.pop("loss")
            logs.update({f"loss_{name}": value for name, value in means.items()})
            logs |= self._how_far()
            if self.fixed_point is not None:
                logs |= self.fixed_point.shares()
            self._window_started, self._window_step = time.monotonic(), self.state.global_step
        # The last log of `Trainer` has speeds and a mean loss that ignore a budget and a resumption.
        kept = {name: value for name, value in logs.items() if not name.startswith(("train_", "total_flos"))}
        if kept:
            super().log(kept, start_time)

    def _how_far(self) -> dict[str, float]:
        """Return the share of the training that is done, the seconds left, and the speed since the last log."""
        seconds = time.monotonic() - self._window_started
        steps = self.state.global_step - self._window_step
        return {
            f"{self.unit}_per_second": steps * self.units_per_step / max(seconds, 1e-9),
            "progress": self.run_control.progress(self.state),
            "seconds_left": self.run_control.seconds_left(self.state),
        }

    @contextmanager
    def excluded_time(self) -> Iterator[None]:
        """Exclude the time of the body, such as an evaluation, from the logged speed and from the progress."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self._window_started += seconds
        self.run_control.clock.exclude(seconds)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create a schedule that ends with the training: it follows the steps, or the clock with a time budget."""
        if self.args.minutes is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = schedule_by_progress(
                optimizer or self.optimizer, self.args, lambda: self.run_control.progress(self.state)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_accelerator_and_postprocess(self) -> None:
        """Do as `Trainer` does, but avoid a copy of the gradients, and keep their norm."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            use_plugin(self.accelerator, self.args)
            self.is_fsdp_enabled = True
        clip = self.accelerator.clip_grad_norm_

        def clip_and_keep(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            self._gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # it may be sharded
            return norm

        self.accelerator.clip_grad_norm_ = clip_and_keep
        if self.accelerator.ddp_handler is not None:  # the default copies gradients out of the communication buffers
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    def get_train_dataloader(self) -> Any:
        """Return the loader of `Trainer`, whose workers leave the end of the run to this process."""
        return outliving_signals(super().get_train_dataloader())

    def get_eval_dataloader(self, *arguments: Any, **options: Any) -> Any:
        """Return the loader of `Trainer` with such workers. The arguments are those of `Trainer`."""
        return outliving_signals(super().get_eval_dataloader(*arguments, **options))

    def get_test_dataloader(self, *arguments: Any, **options: Any) -> Any:
        """Return the loader of `Trainer` with such workers. The arguments are those of `Trainer`."""
        return outliving_signals(super().get_test_dataloader(*arguments, **options))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler

    def run_state(self) -> dict[str, Any]:
        """Return the seconds, the progress and the losses so far."""
        return self.run_control.run_state(self.state) | {"losses": self.losses.state()}

    def restore_run_state(self, state: dict[str, Any]) -> None:
        """Continue the clock and the losses of a checkpoint."""
        self.run_control.restore(state)
        if "losses" in state:  # earlier versions did not keep them
            self.losses.restore(state["losses"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.excluded_time():
            self._check_finite(weights=True)
            super()._save_checkpoint(model, trial)

    def _check_finite(self, weights: bool = False) -> None:
        """Raise an error if a loss or gradient is not finite; with `weights`, also if a weight is not finite."""
        known = len(self.losses.spikes)
        bad = self.losses.read(lambda values: self.accelerator.reduce(values, "mean"))
        for spike in self.losses.spikes[known:]:
            self._log_line(str(spike))
        if bad is not None:
            what = bad_step(*bad)
        elif weights and not all_finite(self.trained):
            what = f"A weight after step {self.state.global_step} is not a finite number"
        else:
            return
        raise not_finite(what, last_checkpoint(self.args.output_dir))
