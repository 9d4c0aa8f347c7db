"""A `transformers.Trainer` whose loss is the distillation objective."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from potstill.corpus import Blocks, Corpus, Masking, ShuffledDraws, load_tokenizer
from potstill.corpus.masking import MaskedBlocks
from potstill.errors import PotstillError
from potstill.recipe import Recipe
from potstill.student import family_of, load_masked_lm
from potstill.training.checkpoints import (
    WRITE_ERRORS,
    cannot_write,
    find_checkpoint,
    last_checkpoint,
    load_run_state,
    load_weights,
    publish,
    save_run_state,
)
from potstill.training.compatibility import check_fit, check_launch, objective_of
from potstill.training.control import RunControl, TrainingInterrupted, schedule_by_progress
from potstill.training.evaluation import held_out_metrics
from potstill.training.graphs import Graphed
from potstill.training.memory import fitting_memory
from potstill.training.progress import ProgressLines, headline
from potstill.training.step import DistillationStep

HELD_OUT_SEED = 0  # the held-out masks are the same for every run, whatever its seed


class DistillationTrainer(Trainer):
    """Train a student to say what its teacher says; without a teacher, train a model by masked LM alone.

    It is a `Trainer`: arguments, logging back ends, callbacks, checkpoints and launchers work as they do there. What
    differs is the data (blocks of a prepared corpus, masked on the device), the loss, and the evaluation.

    Args:
        student: the model to train, from `build_student` or any model of a known family.
        corpus: folder written by `prepare`, or the opened `Corpus`.
        args: `DistillationArguments`, or `PretrainingArguments` to train without a teacher.
        teacher: model (it is frozen and put in eval mode), folder or hub name. Needed if a loss that compares with a
            teacher has a weight above 0; without such a loss it only serves the evaluation.
        processing_class: tokenizer to save with the student; the corpus's own if not given.
        callbacks: as in `Trainer`.
        stop_at: share of the training at which to stop with a checkpoint (used to grow a model in stages).

    Attributes:
        student: the model in training.
        run_control: the clock; `run_control.elapsed` is the seconds trained so far.

    Raises:
        PotstillError: teacher, student, tokenizer and corpus do not fit together.
    """

    model_accepts_loss_kwargs: bool
    control: Any
    lr_scheduler: Any

    def __init__(
        self,
        student: PreTrainedModel,
        corpus: Corpus | str | Path,
        args: Recipe,
        teacher: PreTrainedModel | str | None = None,
        processing_class: PreTrainedTokenizerFast | None = None,
        callbacks: list[TrainerCallback] | None = None,
        stop_at: float = 1.0,
    ) -> None:
        corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
        teacher = _checked_teacher(teacher, corpus)
        tokenizer = processing_class or corpus.tokenizer(family_of(student).token_types)
        corpus.check_tokenizer(tokenizer, "the tokenizer given")
        check_launch(args)
        objective = objective_of(args)
        check_fit(student, teacher, corpus, tokenizer, objective)
        if objective.alpha_ce == objective.alpha_mlm == 0:  # nothing reads the student's head
            args.ddp_find_unused_parameters = True
        if len(corpus.validation) == 0:
            args.eval_strategy, args.eval_on_start = "no", False
        counts = torch.from_numpy(corpus.token_counts)
        special, mask = list(tokenizer.all_special_ids), tokenizer.mask_token_id
        masking = Masking(counts, special, mask, args.seed, args.masking, args.mlm_probability, args.mlm_smoothing)
        seed = args.seed if args.data_seed is None else args.data_seed
        self._draws = ShuffledDraws(len(corpus.train), args.blocks_per_step, seed)
        self.corpus = corpus
        self.run_control = RunControl(args.max_train_minutes, stop_at)
        super().__init__(
            model=DistillationStep(student, teacher, objective),
            args=args,
            data_collator=_as_it_is,
            train_dataset=corpus.train,
            eval_dataset=corpus.validation if len(corpus.validation) else None,
            processing_class=tokenizer,
            callbacks=[self.run_control, *(callbacks or [])],
        )
        if teacher is not None:
            teacher.to(args.device)
        if args.torch_compile:
            self.step.compile_parts(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        self.masking: Callable[[Tensor, Tensor], MaskedBlocks] = masking.to(args.device)
        if args.cuda_graphs:
            self.step.record_graphs()
            replayed = Graphed(lambda input_ids, draw: vars(masking(input_ids, draw)))
            self.masking = lambda input_ids, draw: MaskedBlocks(**replayed(input_ids, draw))
        self.held_out_masking = Masking(counts, special, mask, HELD_OUT_SEED, "uniform").to(args.device)
        # Each micro-batch's loss is a mean over a constant number of tokens, so the mean of micro-batches is right.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(ProgressLines(headline(self.model, corpus.train, args)))
        self._sums: dict[str, Tensor] = {}
        self._micro_steps = 0
        self._first_bad_step = torch.full((), -1, device=args.device, dtype=torch.int64)
        self._window_started, self._window_step = time.monotonic(), 0
        self._staging: Path | None = None

    @property
    def step(self) -> DistillationStep:
        """What is run for each micro-batch, out of its wrappers."""
        return self.model

    @property
    def student(self) -> PreTrainedModel:
        """The model in training."""
        return self.step.student

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher."""
        return self.step.teacher

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all processes read for one step of the optimiser."""
        return self.args.blocks_per_step * self.corpus.train.block_size

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train, as `Trainer.train` does, to the end or to the limit that comes first.

        Raises:
            TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint of the last step is there to resume from.
            PotstillError: the loss is not finite, or a step does not fit into memory; the last checkpoint is from
                before.
        """
        first_step = 0
        if resume_from_checkpoint:
            resume_from_checkpoint = str(find_checkpoint(resume_from_checkpoint, self.args.output_dir))
            self.run_control.elapsed_before = load_run_state(resume_from_checkpoint)["elapsed_seconds"]
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
            steps_per_epoch = len(self._draws) // self._draws.global_batch
            finished = state.global_step >= self.args.steps_in_all(steps_per_epoch)
            if finished or self.run_control.spent:  # only the output may be missing; `Trainer` would take a step more
                if self.is_world_process_zero():
                    print(
                        f"{resume_from_checkpoint} is at the end of training already: nothing is left to train.",
                        file=sys.stderr,
                    )
                self.state = state
                load_weights(self.student, resume_from_checkpoint)
                return TrainOutput(state.global_step, 0.0, {})
            # With several processes, `Trainer` does not tell the sampler which epoch it resumes in the middle of.
            self._draws.set_epoch(state.global_step // steps_per_epoch)
            first_step = state.global_step
        self.step.refresh()
        with self.run_control.catching_signals():
            self.run_control.start()
            self._window_started, self._window_step = time.monotonic(), first_step
            with fitting_memory(self.args):  # around the optimiser too, whose state the first step makes
                result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **options)
        if self.run_control.received_signal is not None and self.run_control.progress(self.state) < 1:
            raise TrainingInterrupted(
                self.checkpoint_folder(), self.run_control.received_signal, self.state.global_step
            )
        self._check_finite(weights=True)
        return result

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch, keeping its terms for the log without waiting for the device."""
        masked = self.masking(inputs["input_ids"], inputs["draw"])
        losses = model(masked.input_ids, masked.positions, masked.labels)
        loss = losses["loss"]
        for name, value in losses.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._micro_steps += 1
        bad = ~torch.isfinite(loss.detach()) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, self.state.global_step + 1, self._first_bad_step)
        return (loss, losses) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Blocks | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate student and teacher on held-out blocks: see `held_out_metrics` for what is measured.

        Raises:
            PotstillError: there are no such blocks, or a batch of them does not fit into memory.
        """
        started = time.monotonic()
        blocks = self.corpus.validation if eval_dataset is None else eval_dataset
        if len(blocks) == 0:
            raise PotstillError(
                "The corpus has no held-out block to evaluate on: prepare it with a larger --validation_fraction."
            )
        with fitting_memory(self.args, evaluation=True):
            metrics = held_out_metrics(
                self.student,
                self.teacher,
                blocks,
                self.held_out_masking,
                batch_size=self.args.per_device_eval_batch_size,
                max_samples=self.args.max_eval_samples,
                process_index=self.args.process_index,
                num_processes=self.args.world_size,
                reduce=lambda sums: self.accelerator.reduce(sums, "sum"),
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._window_started += time.monotonic() - started
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer.log` does; training losses come with their terms, tokens per second and seconds left."""
        if "loss" in logs:
            self._check_finite()
            if self._micro_steps:
                names, values = zip(*self._sums.items(), strict=True)
                means = self.accelerator.reduce(torch.stack(values) / self._micro_steps, "mean").tolist()
                logs.update({f"loss_{name}": value for name, value in zip(names, means, strict=True)})
            now = time.monotonic()
            steps = self.state.global_step - self._window_step
            logs["tokens_per_second"] = steps * self.tokens_per_step / max(now - self._window_started, 1e-9)
            logs["progress"] = progress = self.run_control.progress(self.state)
            logs["seconds_left"] = self.run_control.elapsed * (1 - progress) / max(progress, 1e-9)
            self._sums, self._micro_steps = {}, 0
            self._window_started, self._window_step = now, self.state.global_step
        # `Trainer` closes with speeds and a mean loss that know nothing of a budget or of a resumption.
        kept = {name: value for name, value in logs.items() if not name.startswith("train_")}
        if kept:
            super().log(kept, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Follow steps, or with `max_train_minutes` the clock, so that the schedule ends when the training does."""
        if self.args.max_train_minutes is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = schedule_by_progress(
                optimizer or self.optimizer, self.args, lambda: self.run_control.progress(self.state)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def checkpoint_folder(self) -> Path:
        """Return where the checkpoint of the current step is, or would be."""
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def create_accelerator_and_postprocess(self) -> None:
        """Do as `Trainer` does, but let the step compile its layers itself, and spare gradients a copy."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend
        if self.accelerator.ddp_handler is not None:  # else gradients are copied out of what was communicated
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self._draws

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside its place and move it there whole, so that every checkpoint can be loaded."""
        started = time.monotonic()
        self._check_finite(weights=True)
        self._staging = Path(self.args.output_dir) / ".checkpoint.partial"
        staged, folder = self._staging / self.checkpoint_folder().name, self.checkpoint_folder()
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_run_state(staged, self.run_control.elapsed, self.run_control.progress(self.state))
                publish(staged, folder, self.state, self.args)
        except WRITE_ERRORS as error:
            raise cannot_write(folder, error, last_checkpoint(self.args.output_dir)) from error
        finally:
            if self.args.should_save:  # the other processes come here while this one still moves the folder
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self._window_started += time.monotonic() - started

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self.student.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.student, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_weights(self.student, Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}")

    def _check_finite(self, weights: bool = False) -> None:
        """Raise if a loss since the start, or with `weights` a weight now, is not a finite number."""
        steps = self.accelerator.gather(self._first_bad_step[None])  # all processes stop, or some would wait for ever
        # The first of all: what one process found is in the weights of the others a step later.
        step = min((step for step in steps.tolist() if step >= 0), default=-1)
        if step >= 0:
            what = f"The loss at step {step}"
        elif weights and not all(torch.isfinite(p).all() for p in self.student.parameters()):
            what = f"A weight after step {self.state.global_step}"
        else:
            return
        last = last_checkpoint(self.args.output_dir)
        mend = "start again" if last is None else f"resume from the last good checkpoint, {last},"
        raise PotstillError(
            f"{what} is not a finite number, so training stopped: {mend} with a lower --learning_rate or a longer "
            "warm-up."
        )


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: `Blocks` returns whole batches."""
    return batch


def _checked_teacher(teacher: PreTrainedModel | str | None, corpus: Corpus) -> PreTrainedModel | None:
    """Load a teacher that is named; where its tokenizer is known, make sure that the corpus was prepared with it."""
    name = teacher if isinstance(teacher, str) else getattr(teacher, "name_or_path", "")
    if isinstance(teacher, str) or Path(name or "-", "tokenizer_config.json").is_file():
        corpus.check_tokenizer(load_tokenizer(name, role="teacher"), name)
    return load_masked_lm(teacher) if isinstance(teacher, str) else teacher
