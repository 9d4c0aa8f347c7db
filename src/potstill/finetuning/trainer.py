"""A trainer for one task, which scores its dev sets."""

from __future__ import annotations

import datetime
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from potstill.arguments import recipe_text, recipe_values
from potstill.bilstm.model import BiLSTMForSequenceClassification
from potstill.errors import PotstillError
from potstill.finetuning.data import TaskData
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.frozen import FrozenEncoder
from potstill.finetuning.job import Job
from potstill.finetuning.lists import ListBatches, ListSampler
from potstill.finetuning.model_source import model_source
from potstill.finetuning.predict import fingerprint, predict, scored_fingerprint
from potstill.finetuning.result import RunResult, relevant
from potstill.finetuning.rows import LengthGroupedSampler, MixedSampler
from potstill.finetuning.several_teachers import targets_in
from potstill.finetuning.step import TaskStep
from potstill.finetuning.teacher_heads import TeacherHeads
from potstill.precision.simulated import in_float
from potstill.student.model_files import model_folder
from potstill.tasks.metrics import shown
from potstill.tasks.per_label import DETAILS
from potstill.training.checkpoints import load_modules, save_modules
from potstill.training.compatibility import check_launch
from potstill.training.float32_norms import use_float32_norms
from potstill.training.hardware import hardware
from potstill.training.memory import fitting_memory
from potstill.training.resumable import ResumableTrainer
from potstill.training.run_record import model_fingerprint, table_hash
from potstill.versions import versions
from potstill.wording import counted


class FinetuneTrainer(ResumableTrainer):
    """Fine-tunes a model on the rows of a job, and scores it.

    It is a `Trainer`: arguments, logging back ends, callbacks, checkpoints and launchers work as in `Trainer`.

    Args:
        model: a model with the task's head, from `job.new_model()`.
        job: rows and options.
        callbacks: as in `Trainer`.

    Raises:
        PotstillError: the run cannot be launched in this way, or it has fewer rows than a batch and drops that batch.
    """

    unit = "rows"

    def __init__(self, model: PreTrainedModel, job: Job, callbacks: list[TrainerCallback] | None = None) -> None:
        args = job.args
        check_launch(args)
        rows = job.drawn + (len(job.train) if job.train.labelled is None else job.train.labelled)
        if args.dataloader_drop_last and rows < self._rows_of(args):
            raise PotstillError(
                f"--dataloader_drop_last leaves nothing of {counted(rows, 'row')}, because a batch has "
                f"{self._rows_of(args)}: leave it out."
            )
        self.job = job
        self.details: dict[str, Any] = {}
        self._rows_per_batch: float | None = None  # in the current step, if its micro-batches are to count by rows
        teacher = None if job.hidden_teacher is None else job.hidden_teacher.to(args.device)
        # A frozen encoder packs rows by their lengths. It reads these on the CPU, which a CUDA graph cannot do.
        record = args.records and not isinstance(model, FrozenEncoder | BiLSTMForSequenceClassification)
        objective = args.ranking_objective() if args.ranks else args.objective()
        sampler: LengthGroupedSampler | ListSampler
        if args.ranks:
            sampler = ListSampler(job.train.values["lists"], job.train.lengths, args.train_batch_size, args.seed)
        elif job.train.labelled is not None:
            sampler = MixedSampler(job.train.lengths, job.train.labelled, job.drawn, self._rows_of(args), args.seed)
        else:
            sampler = LengthGroupedSampler(job.train.lengths, self._rows_of(args), args.seed)
        if args.bf16 and args.device.type == "cpu":
            use_float32_norms(model)
        heads = None
        if args.teacher_heads == "separate":
            learns_labels = bool(args.alpha_task) and job.train.labelled != 0
            heads = TeacherHeads.on(model, job.train, args.weights_of_teachers, learns_labels)
        super().__init__(
            model=TaskStep(model, objective, teacher, record, job.class_weights, args.weights_of_teachers, heads),
            args=args,
            sampler=sampler,
            headline=_headline(model, job),
            evaluation_line=_evaluation_line,
            callbacks=callbacks,
            data_collator=_unchanged,
            train_dataset=ListBatches(job.train) if args.ranks else job.train,
            eval_dataset=job.dev,  # `evaluate` scores all splits together
            processing_class=job.tokenizer,
        )

    @property
    def trained(self) -> PreTrainedModel:
        """The model in training."""
        return self.model.model

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the training rows, the model's files and the teacher's files, by name."""
        rows = self.job.train
        # A teacher's logits may differ in rounding between machines.
        columns = {name: column for name, column in (rows.tokens | rows.values).items() if not name.startswith("soft")}
        found = {"training data": table_hash(columns | {"lengths": rows.lengths})}
        if self.job.source:
            found["model"] = model_fingerprint(model_folder(self.job.source, "model"))
        for number, name in enumerate(self.args.teachers):
            found[f"teacher {number + 1}" if number else "teacher"] = model_fingerprint(model_folder(name, "teacher"))
        return found

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch; a smaller last batch counts unless it is dropped."""
        if isinstance(self.sampler, ListSampler):
            batches = -(-self.sampler.batches // self.args.world_size)
            return max(1, math.ceil(batches / self.args.gradient_accumulation_steps))
        size = self._rows_of(self.args)
        batches = len(self.sampler) // size if self.args.dataloader_drop_last else -(-len(self.sampler) // size)
        return max(1, math.ceil(batches / self.args.gradient_accumulation_steps))

    @property
    def units_per_step(self) -> int:
        """Number of rows that all processes together read for one step of the optimiser; for lists their mean."""
        if isinstance(self.sampler, ListSampler):
            steps = self.sampler.batches / (self.args.world_size * self.args.gradient_accumulation_steps)
            return max(1, round(len(self.job.train) / steps))
        return self._rows_of(self.args) * self.args.gradient_accumulation_steps

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """Read the micro-batches of a step as `Trainer` does, and keep how many rows they have on average.

        Args:
            arguments: those of `Trainer`.
            options: as above.
        """
        batches, items = super().get_batch_samples(*arguments, **options)
        if batches and not self.args.ranks:  # the losses of a ranking are no means over rows
            self._rows_per_batch = sum(len(batch["input_ids"]) for batch in batches) / len(batches)
        return batches, items

    def compute_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the named losses of a micro-batch, which counts in its step by its number of rows.

        The last micro-batch of an epoch may be shorter than the others of its step. `Trainer` takes the mean over
        micro-batches.

        Args:
            model: the given module, inside the wrappers of `Trainer`.
            inputs: a micro-batch of the data, on the device.
        """
        losses = super().compute_losses(model, inputs)
        rows, mean = len(inputs["input_ids"]), self._rows_per_batch
        if mean is None or rows == mean:
            return losses
        return {name: value * (rows / mean) for name, value in losses.items()}

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train as `ResumableTrainer.train` does. Heads of several teachers are folded into the model at the end."""
        result = super().train(resume_from_checkpoint, **options)
        if self._heads is not None:
            self._heads.fold()
            self.model.heads = None
        return result

    @property
    def _heads(self) -> TeacherHeads | None:
        return self.model.heads

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._heads is not None and self.args.should_save:
            save_modules(self._heads, output_dir or "")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._heads is not None:
            load_modules(self._heads, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._heads is not None:
            load_modules(self._heads, Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}")

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the dev sets, and log and return the metrics under names such as `eval_dev_matched_accuracy`."""
        return self._log_scores(self.score(), metric_key_prefix)

    def score(self) -> dict[str, Any]:
        """Score the dev sets, and keep the figures of each label in `details`.

        Returns:
            The task's metrics, by split if it has several, and its `score`; all in percent.

        Raises:
            PotstillError: a batch does not fit into memory.
        """
        args = self.args
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        folded = nullcontext() if self._heads is None else self._heads.folded()
        with self.excluded_time(), fitting_memory(args, evaluation=True), folded:
            self.trained.to(args.device)
            found = self.job.data.score(
                lambda rows: predict(self.trained, rows, args.per_device_eval_batch_size, dtype), self.job.dev
            )
        self.details = {name: found.pop(name) for name in DETAILS if name in found}
        if "threshold" in found:  # whoever loads the model then knows from which probability on a label is meant
            self.trained.config.threshold = found["threshold"]
        return found

    def _log_scores(self, metrics: dict[str, Any], prefix: str = "eval") -> dict[str, float]:
        logs = {f"{prefix}_{name}": value for name, value in flat(metrics).items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    @staticmethod
    def _rows_of(args: Any) -> int:
        return args.train_batch_size * args.world_size


def train_once(
    job: Job, callbacks: list[TrainerCallback] | None = None, progress: bool = True
) -> tuple[FinetuneTrainer, dict[str, Any]]:
    """Fine-tune a new model on a job and score it.

    Args:
        job: the rows and the options.
        callbacks: as in `Trainer`.
        progress: whether to print lines of progress. A terminal shows the steps in any case.

    Returns:
        The trainer, whose `trained` is the model, and the measurements: `metrics`, `score`, `quantized` (the metrics
        and the score of the model as its int8 export computes, or None), `fixed_point` (see
        `FixedPointTraining.record`, or None), `seconds` by part, `steps`, and `rows_per_second` of the training; and
        the figures in `DETAILS` that the task has.

    Raises:
        TrainingInterrupted: a signal ended training; a checkpoint to resume from is saved.
        PotstillError: the loss is not finite, or a batch does not fit into memory.
    """
    started = time.monotonic()
    recipe = recipe_text("finetune", job.args)
    trainer = FinetuneTrainer(job.new_model(), job, callbacks)
    trainer.recipe = recipe
    trainer.progress_lines.quiet = not progress
    prepared = time.monotonic()
    trainer.train(resume_from_checkpoint=job.args.resume_from_checkpoint)
    if job.args.device.type == "cuda":
        torch.cuda.synchronize(job.args.device)
    trained = time.monotonic()
    quantized = None
    if job.args.quantization:
        quantized = {"quantization": job.args.quantization, **trainer.score()}
    with in_float(trainer.trained):  # the model is saved in float
        metrics = trainer.score()
    trainer._log_scores(metrics)
    scored = time.monotonic()
    score = metrics.pop("score")
    seconds = {"preparing": prepared - started, "training": trained - prepared, "scoring": scored - trained}
    steps = trainer.state.global_step
    return trainer, {
        "score": score,
        "metrics": metrics,
        "quantized": quantized,
        "fixed_point": trainer.fixed_point and trainer.fixed_point.record,
        **trainer.details,
        **trainer.losses.record(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "steps": steps,
        "rows_per_second": steps * trainer.units_per_step / max(trained - prepared, 1e-9),
    }


def result_of(
    args: FinetuneArguments,
    data: TaskData,
    measured: dict[str, Any],
    data_hash: str | None = None,
    layers: list[int] | None = None,
    **more: Any,
) -> RunResult:
    """Return the result of a run, ready to be written.

    Args:
        args: the options of the run.
        data: the data of its task.
        measured: the measurements that `train_once` returns.
        data_hash: the fingerprint of the data, if it is already known.
        layers: the layers of the model that were kept; None for all.
        more: other fields of `RunResult`, or values that replace those from above.
    """
    task, model = args.declared_task, args.model or ""
    values: dict[str, Any] = {
        "model": Path(model).name or model,
        "model_path": model,
        "task": task.name,
        "title": task.title,
        "suite": task.suite_name,
        "seed": args.seed,
        "teacher": ", ".join(args.teachers) or None,
        "hyperparameters": hyperparameters(args),
        "versions": versions("potstill", "torch", "transformers", "tokenizers"),
        "hardware": hardware(args.device),
        "rows": {"train": len(data.train), **{name: len(split) for name, split in data.dev.items()}},
        "data_fingerprint": data_hash or fingerprint({"train": data.train, **data.dev}),
        "scored_fingerprint": scored_fingerprint(data.dev, data.labels),
        "model_fingerprint": model_fingerprint(model_folder(model_source(args), "model")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "bad_rows": data.bad_rows,
        "bad_answers": data.bad_answers,
        "layers": layers,
    }
    return RunResult(**values | measured | more)


def hyperparameters(args: FinetuneArguments) -> dict[str, Any]:
    """Return the options that a score depends on."""
    return relevant(recipe_values(args), bool(args.teacher), args.is_question)


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Return metrics of several splits under names such as `dev_matched_accuracy`."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= {f"{name}_{metric}": number for metric, number in value.items()}
        else:
            found[name] = value
    return found


def _evaluation_line(logs: dict[str, float]) -> str:
    return " · ".join(
        f"{name.removeprefix('eval_')} {shown(name, value)}"
        for name, value in logs.items()
        if name.startswith("eval_") and isinstance(value, float)
        # The score of a split is one of its metrics, or their mean.
        if name == "eval_score" or not name.endswith("_score")
    )


def _headline(model: PreTrainedModel, job: Job) -> str:
    args = job.args
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = "" if trained == parameters else f", {trained:,} of them trained"
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    devices = f"{args.world_size} × " if args.world_size > 1 else ""
    count = len(targets_in(job.train.values | job.train.tokens))
    teacher = " ← soft targets of a teacher" if count else ""
    if count > 1:
        heads = ", a head for each" if args.teacher_heads == "separate" else ""
        teacher = f" ← soft targets of {count} teachers{heads}"
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    rows = counted(len(job.train), "row")
    if (labelled := job.train.labelled) is not None:
        rows = f"{job.drawn:,} of {counted(len(job.train) - labelled, 'unlabelled row')}"
        rows = f"{labelled:,} labelled and {rows}" if labelled else rows
    rows = f"{rows}, {job.train.lengths.mean():.0f} tokens each"
    if args.ranks:
        rows = f"{counted(len(set(job.train.values['lists'].tolist())), 'list')} of {rows}"
    return (
        f"{args.declared_task.name} · {model.config.model_type}, {parameters:,} parameters{frozen}{teacher} · {rows}, "
        f"{batch:,} a step · {precision} on {devices}{hardware(args.device)}"
    )


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as it is: `Rows` returns complete batches, so there is nothing to collate."""
    return batch
