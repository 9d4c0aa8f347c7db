"""Does one run of an evaluation: fine-tunes a model, scores it and writes the result."""

from __future__ import annotations

import functools
import gc
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from potstill.errors import PotstillError, first_line
from potstill.files import complete_folder
from potstill.finetuning.data import TaskData, load_data
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.predict import fingerprint
from potstill.finetuning.result import RunResult
from potstill.finetuning.trainer import FinetuneTrainer, result_of, train_once
from potstill.json_files import check_finite
from potstill.tasks.registry import find_task
from potstill.training.checkpoints import WRITE_ERRORS


class RunInterrupted(PotstillError):  # noqa: N818 (not an error: it reports an interruption)
    """A signal came in the last step of a run: the run is complete, but the evaluation must stop."""

    def __init__(self, signal: int) -> None:
        super().__init__("Interrupted.")
        self.exit_status = 128 + signal


@dataclass(frozen=True)
class PlannedRun:
    """A run of an evaluation.

    Attributes:
        model: the model's name in the plan.
        options: the options of `FinetuneArguments`. A `FinetuneArguments` object would hold the devices of the process
            that made it, so each process makes its own.
        file: the file to write the result to.
        keep: folder to save the task model to; None if only the score is needed.
        searched: see `RunResult`.
        teacher_name: the name of the run's task teacher in the result.
        may_fail: whether the evaluation continues if this run fails. A learning rate of a search may be too high.
    """

    model: str
    options: dict[str, Any]
    file: Path
    keep: Path | None = None
    searched: dict[str, list[Any]] | None = None
    teacher_name: str | None = None
    may_fail: bool = False

    def __str__(self) -> str:
        options = self.options
        rate = f" · lr {options['learning_rate']:g}" if options["learning_rate"] is not None else ""
        keep = ", to be a teacher" if self.keep is not None else ""
        return f"{self.model} · {find_task(options['task']).title}{rate} · seed {options['seed']}{keep}"

    @property
    def task(self) -> str:
        """The name of the task. The options may name the file that declares it."""
        return find_task(self.options["task"]).name

    def args(self) -> FinetuneArguments:
        """Return the options, made in this process."""
        return FinetuneArguments(**self.options)


def do(run: PlannedRun) -> RunResult:
    """Fine-tune a model, score it and write the result.

    Raises:
        TrainingInterrupted: a signal ended the run.
        RunInterrupted: a signal came so late that the run is complete.
        PotstillError: the run cannot be done.
    """
    args = run.args()
    job = _job(args)
    job = job.with_teacher() if args.teacher else job
    try:
        trainer, measured = train_once(job, progress=False)
        if run.keep is not None:
            _save_model(trainer, job, run.keep)
    finally:
        shutil.rmtree(args.output_dir or "", ignore_errors=True)
    # A score may not be a number: the correlation of equal scores is not defined, and outputs may be NaN.
    check_finite({"score": measured["score"], **measured["metrics"]}, "This run has no result")
    received_signal = trainer.run_control.received_signal
    del trainer
    if args.device.type == "cuda":
        gc.collect()  # a trainer and its callbacks refer to each other, which keeps the weights in memory
        torch.cuda.empty_cache()
    fields: dict[str, Any] = {"model": run.model, "teacher": run.teacher_name, "searched": run.searched}
    if job.unlabelled is not None:
        fields["unlabelled"] = job.unlabelled.record(job.drawn)
    result = result_of(args, job.data, measured, data_fingerprint(job.data), **fields)
    result.save_as(run.file)
    if received_signal is not None:
        raise RunInterrupted(received_signal)
    return result


def _save_model(trainer: FinetuneTrainer, job: Job, folder: Path) -> None:
    try:
        with complete_folder(folder) as partial:
            trainer.trained.save_pretrained(partial)
            job.tokenizer.save_pretrained(partial)
    except WRITE_ERRORS as error:
        raise PotstillError(f"{folder} cannot be written: {first_line(error)}.") from error


# A process does the runs of a task one after another. So it keeps what they share: the data of the last task, and the
# rows that the last model's tokenizer made of them.
_data: dict[tuple[Any, ...], TaskData] = {}
_jobs: dict[tuple[Any, ...], Job] = {}


def clear_cache() -> None:
    """Clear the kept data and rows, so that changed files are read again."""
    _data.clear()
    _jobs.clear()
    data_fingerprint.cache_clear()


def task_data(args: FinetuneArguments) -> TaskData:
    """Return the data of a task, read only once for consecutive runs.

    Raises:
        TaskDataAbsentError: the task has no data.
        PotstillError: the data cannot be read.
    """
    limits = (args.max_train_samples, args.max_eval_samples)
    files = getattr(args.declared_task, "files", None)
    key = (args.task, files, args.task_data, args.metric, limits, args.question_options(), args.on_bad_rows)
    if key not in _data:
        loaded = load_data(args)
        _data.clear()
        _data[key] = loaded
    return _data[key]


def _job(args: FinetuneArguments) -> Job:
    data = task_data(args)
    # The id is unique: a kept job refers to its data, so no other object gets that id. Rows depend on the other parts.
    texts = (tuple(args.unlabelled or ()), tuple(args.unlabelled_columns or ()))
    key = (id(data), args.model, str(args.bilstm), args.max_length, args.freeze_encoder, args.records, texts)
    if key not in _jobs:
        _jobs.clear()
        _jobs[key] = Job.prepare(args, data)
    return replace(_jobs[key], args=args)


@functools.lru_cache(maxsize=1)
def data_fingerprint(data: TaskData) -> str:
    """Return a SHA-256 of the rows of a task."""
    return fingerprint({"train": data.train, **data.dev})
