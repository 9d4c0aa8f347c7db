"""One run of an evaluation: fine-tune, score, write the result."""

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
from potstill.tasks.registry import title_of
from potstill.training.checkpoints import WRITE_ERRORS


class RunInterrupted(PotstillError):  # noqa: N818 (it tells what happened; nothing is wrong)
    """A signal came in the last step of a run: the run is complete, the evaluation is not to go on."""

    def __init__(self, signal: int) -> None:
        super().__init__("Interrupted.")
        self.exit_status = 128 + signal


@dataclass(frozen=True)
class PlannedRun:
    """A run to be done.

    Attributes:
        model: its name in the plan.
        options: of `FinetuneArguments`; not those themselves, which know the devices of the process that made them.
        file: where its result goes.
        keep: folder to save the task model to; None if only the score is wanted.
        searched: see `RunResult`.
        taught_by: what its task teacher is called in the result.
        may_fail: whether the evaluation goes on without it: learning rates that are tried may be too high.
    """

    model: str
    options: dict[str, Any]
    file: Path
    keep: Path | None = None
    searched: dict[str, list[Any]] | None = None
    taught_by: str | None = None
    may_fail: bool = False

    def __str__(self) -> str:
        options = self.options
        rate = f" · lr {options['learning_rate']:g}" if options["learning_rate"] is not None else ""
        keep = ", to be a teacher" if self.keep is not None else ""
        return f"{self.model} · {title_of(options['task'])}{rate} · seed {options['seed']}{keep}"

    def args(self) -> FinetuneArguments:
        """Return the options as this process has them."""
        return FinetuneArguments(**self.options)


def do(work: PlannedRun) -> RunResult:
    """Fine-tune and score, and write the result.

    Raises:
        TrainingInterrupted: a signal ended the run.
        RunInterrupted: a signal came so late that the run is complete.
        PotstillError: the run cannot be done.
    """
    args = work.args()
    job = _job(args)
    job = job.taught() if args.teacher else job
    try:
        trainer, measured = train_once(job, progress=False)
        if work.keep is not None:
            _keep(trainer, job, work.keep)
    finally:
        shutil.rmtree(args.output_dir or "", ignore_errors=True)
    # It may have no number to show: a correlation of equal scores has none, and outputs of NaN give none.
    check_finite({"score": measured["score"], **measured["metrics"]}, "This run has no result")
    received_signal = trainer.run_control.received_signal
    del trainer
    if args.device.type == "cuda":
        gc.collect()  # a trainer and its callbacks hold each other, and so the weights
        torch.cuda.empty_cache()
    named = {"model": work.model, "teacher": work.taught_by, "searched": work.searched}
    result = result_of(args, job.data, measured, data_fingerprint(job.data), **named)
    result.save_as(work.file)
    if received_signal is not None:
        raise RunInterrupted(received_signal)
    return result


def _keep(trainer: FinetuneTrainer, job: Job, folder: Path) -> None:
    try:
        with complete_folder(folder) as partial:
            trainer.trained.save_pretrained(partial)
            job.tokenizer.save_pretrained(partial)
    except WRITE_ERRORS as error:
        raise PotstillError(f"{folder} cannot be written: {first_line(error)}.") from error


# A process does the seeds of a task one after another, and keeps what they share: the last task's data, and its rows as
# the last model reads them.
_data: dict[tuple[Any, ...], TaskData] = {}
_jobs: dict[tuple[Any, ...], Job] = {}


def forget() -> None:
    """Read data and models anew from here on: files may have changed."""
    _data.clear()
    _jobs.clear()
    data_fingerprint.cache_clear()


def task_data(args: FinetuneArguments) -> TaskData:
    """Return the data of a task, read once for the runs that follow each other.

    Raises:
        TaskDataAbsentError: there is none.
        PotstillError: it cannot be read.
    """
    limits = (args.max_train_samples, args.max_eval_samples)
    key = (args.task, args.task_data, limits, args.question_options(), args.on_bad_rows)
    if key not in _data:
        found = load_data(args)
        _data.clear()
        _data[key] = found
    return _data[key]


def _job(args: FinetuneArguments) -> Job:
    data = task_data(args)
    # The id is of this data alone, for a job that is kept holds on to its data. The rest is what rows depend on.
    key = (id(data), args.model, args.max_length, args.freeze_encoder, args.records)
    if key not in _jobs:
        _jobs.clear()
        _jobs[key] = Job.prepare(args, data)
    return replace(_jobs[key], args=args)


@functools.lru_cache(maxsize=1)
def data_fingerprint(data: TaskData) -> str:
    """Return a SHA-256 of the rows of a task."""
    return fingerprint({"train": data.train, **data.dev})
