"""What the data of all tasks on labels in a user's own files have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from potstill.errors import PotstillError
from potstill.finetuning.models import AutoHead
from potstill.finetuning.rows import Rows, sample_rows
from potstill.finetuning.sentences import Predict
from potstill.tasks.class_scores import Scored
from potstill.tasks.own import OwnTask
from potstill.tasks.own_rows import OwnRows
from potstill.tasks.own_tables import TRAIN
from potstill.tasks.per_label import DETAILS
from potstill.tasks.rows import OnBadRows
from potstill.tasks.task import OwnFiles

Answers = TypeVar("Answers")
"""What a model answers for the rows of a file, and what is right."""


class OwnData(Generic[Answers]):
    """The data of a task on labels in a user's own files.

    A subclass reads the files and scores the answers of a model.

    Args:
        task: the task.
        files: its files.
        metric: the metric that is the score; the task's if None.
        max_train_samples: number of rows to train on, see `sample_rows`; all if None.
        max_eval_samples: number of rows of each file to score, see `sample_rows`; all if None.
        on_bad_rows: `stop`: a row that cannot be used is an error; `skip`: it is left out and counted.
        names: names of the labels, if there are no labelled rows to train on, which tell them; empty for a number.

    Attributes:
        labels: names of the labels; empty for a number.
        labelled: whether there are labelled rows to train on.
        train: rows to train on.
        dev: `dev`, or the name of each of several files to score, → its rows.
        bad_rows: split → number of rows left out.
        bad_answers: always 0: only questions have such answers.

    Raises:
        PotstillError: the files cannot be read, or a split has no rows.
    """

    head: AutoHead

    def __init__(
        self,
        task: OwnTask,
        files: OwnFiles,
        metric: str | None = None,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        on_bad_rows: OnBadRows = "stop",
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.task, self.metric, self.bad_answers = task, metric, 0
        self.names, self.labelled = names, names is None
        found = self._read(files, on_bad_rows)
        self.labels: tuple[str, ...] = found.labels
        self.bad_rows = found.bad_rows
        for name, split in found.splits.items():
            if len(split) == 0 and (self.labelled or name != TRAIN):
                raise PotstillError(f"The {name} set of {task.title} is empty: there is nothing to train on or score.")
        self.train = sample_rows(found.splits[TRAIN], max_train_samples)
        self.dev = {name: sample_rows(split, max_eval_samples) for name, split in found.splits.items() if name != TRAIN}

    def score(self, predict: Predict, dev: dict[str, Rows]) -> Scored:
        """Return the metrics, their `score`, and the figures of each label.

        Of several files the metrics are by file, and the score is the mean of their scores, so that each file counts
        the same, however long it is. The figures of labels, and the threshold of several labels a text, are over the
        rows of all files together.

        Args:
            predict: returns the logits of the rows of a file.
            dev: file → rows.

        Raises:
            PotstillError: logits of the model are not finite.
        """
        answers = {name: self._answers(predict(rows), rows, name) for name, rows in dev.items()}
        scored = self._scored([*answers.values()])
        if len(answers) == 1:
            return scored
        together = {name: scored[name] for name in (*DETAILS, "threshold") if name in scored}
        by_file: Scored = {}
        for name, one in answers.items():
            metrics = self._scored([one], together.get("threshold"))
            by_file[name] = {metric: value for metric, value in metrics.items() if metric not in together}
        return by_file | {"score": float(np.mean([metrics["score"] for metrics in by_file.values()]))} | together

    @abstractmethod
    def _read(self, files: OwnFiles, on_bad_rows: OnBadRows) -> OwnRows:
        """Read the files."""

    @abstractmethod
    def _answers(self, logits: dict[str, Any], rows: Rows, name: str) -> Answers:
        """Return the answers of a model for the rows of a file, and the right ones; `name` is for messages."""

    @abstractmethod
    def _scored(self, answers: Sequence[Answers], threshold: float | None = None) -> Scored:
        """Score the answers for one file or several together; the threshold is for several labels a text."""
