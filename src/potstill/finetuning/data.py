"""Reads the data of a task; each kind of task has one class that reads its data."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import datasets
from transformers import PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.models import AutoHead, load_config
from potstill.finetuning.own_texts import OwnTextData
from potstill.finetuning.questions import QuestionData
from potstill.finetuning.rerank import RerankData, files_of
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.sentences import SentenceData
from potstill.finetuning.tags import TagData
from potstill.finetuning.teacher_labels import label_names
from potstill.tasks.own import OWN, ClassTask, MultilabelTask, OwnTask, ScoreTask, TagTask
from potstill.tasks.own_labels import read_names
from potstill.tasks.questions import QuestionTask
from potstill.tasks.rerank import RerankTask
from potstill.tasks.sentence import SentenceTask
from potstill.tasks.task import Task


class TaskData(Hashable, Protocol):
    """The interface of a task's data that fine-tuning uses, for all kinds of tasks.

    Attributes:
        head: the auto class that loads a model for the task.
        train: examples to train on.
        dev: split → examples to score.
        bad_rows: split → number of rows left out because they cannot be used.
        bad_answers: number of answers left out because their context does not contain them.
    """

    head: AutoHead
    train: datasets.Dataset
    dev: dict[str, datasets.Dataset]
    bad_rows: dict[str, int]
    bad_answers: int

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes; empty for a regression; None if an answer is not a class."""

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task."""

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Tokenise a split."""

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's logits as columns of `Rows`: `tokens` (one number per token) and `values` (per row)."""

    def score(self, predict: Callable[[Rows], dict[str, Array]], dev: dict[str, Rows]) -> dict[str, Any]:
        """Return the metrics, by split if there are several splits, and their `score`; all in percent.

        A task with labels adds the figures of `potstill.tasks.per_label`, by the names in `DETAILS` there.
        """


def load_data(args: FinetuneArguments) -> TaskData:
    """Read the data of a task.

    Raises:
        TaskDataAbsentError: the folder has no data of the task.
        PotstillError: the data cannot be read.
    """
    task = args.declared_task
    for kind, read in KINDS.items():
        if isinstance(task, kind):
            return read(task, args)
    raise PotstillError(f"No class reads the data of {task.title}, which is declared as {type(task)}.")


def _sentences(task: SentenceTask, args: FinetuneArguments) -> TaskData:
    return SentenceData(task, args.task_data, args.max_train_samples, args.max_eval_samples, args.on_bad_rows)


def _questions(task: QuestionTask, args: FinetuneArguments) -> TaskData:
    options = args.question_options()
    files = args.own_files if args.train_data or args.eval_data or task.files or task.name in OWN else None
    return QuestionData(task, args.task_data, options, args.max_train_samples, args.max_eval_samples, files)


def _rerank(task: RerankTask, args: FinetuneArguments) -> TaskData:
    files = files_of(args.train_data, args.eval_data, args.task_data)
    limits = (args.max_train_samples, args.max_eval_samples)
    return RerankData(files, args.rerank_columns, args.ranking_objective(), *limits, args.on_bad_rows)


def _own(task: OwnTask, args: FinetuneArguments) -> TaskData:
    files, limits = args.own_files, (args.max_train_samples, args.max_eval_samples)
    kind = TagData if isinstance(task, TagTask) else OwnTextData
    names: tuple[str, ...] | None = None
    if args.unlabelled_alone:
        listed = files.label_names
        regression = isinstance(task, ScoreTask)
        names = () if regression else read_names(listed) if listed else _names_of(args.teachers[0])
    return kind(task, files, args.metric, *limits, args.on_bad_rows, names=names)


def _names_of(teacher: str) -> tuple[str, ...]:
    return label_names(teacher, load_config(teacher, "teacher"))


KINDS: dict[type[Task], Callable[[Any, FinetuneArguments], TaskData]] = {
    SentenceTask: _sentences,
    QuestionTask: _questions,
    RerankTask: _rerank,
    **dict.fromkeys((ClassTask, MultilabelTask, ScoreTask, TagTask), _own),
}
"""Class of a declaration → function that reads the data of such tasks."""
