"""Prepares a task on texts in a user's files for a model: rows to train on and to score, the head, and the score."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.finetuning.rows import Array, Rows, sample_rows
from potstill.finetuning.sentences import Predict, check_logits, class_shape, score_shape, tokenised
from potstill.tasks.class_scores import Scored, class_scores, number_scores, set_scores
from potstill.tasks.own import MultilabelTask, OwnTask, ScoreTask
from potstill.tasks.own_rows import read_own_rows, read_scored
from potstill.tasks.own_tables import DEV, TRAIN
from potstill.tasks.rows import OnBadRows
from potstill.tasks.task import OwnFiles


class OwnTextData:
    """The data of a task that gives a text, or a pair of texts, a label, several labels or a number.

    Args:
        task: the task.
        files: its files.
        metric: the metric that is the score; the task's if None.
        max_train_samples: number of rows to train on, see `sample_rows`; all if None.
        max_eval_samples: number of rows to score, see `sample_rows`; all if None.
        on_bad_rows: `stop`: a row that cannot be used is an error; `skip`: it is left out and counted.
        names: names of the labels, if there are no labelled rows to train on, which tell them; empty for a number.

    Attributes:
        labels: names of the labels; empty for a number.
        labelled: whether there are labelled rows to train on.
        bad_rows: split → number of rows left out.
        bad_answers: always 0: only questions have such answers.

    Raises:
        PotstillError: see `read_own_rows`; or a split has no rows.
    """

    head = AutoModelForSequenceClassification

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
        self.labelled = names is None
        found = (
            read_own_rows(task, files, on_bad_rows) if names is None else read_scored(task, files, names, on_bad_rows)
        )
        self.labels: tuple[str, ...] = found.labels
        self.bad_rows = found.bad_rows
        self.train = sample_rows(found.splits[TRAIN], max_train_samples)
        self.dev = {DEV: sample_rows(found.splits[DEV], max_eval_samples)}
        for name, split in ((TRAIN, self.train), *self.dev.items()):
            if len(split) == 0 and (self.labelled or name != TRAIN):
                raise PotstillError(f"The {name} set of {task.title} is empty: there is nothing to train on or score.")

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task."""
        if isinstance(self.task, ScoreTask):
            return score_shape()
        kind = "multi" if isinstance(self.task, MultilabelTask) else "single"
        return class_shape(self.labels) | {"problem_type": f"{kind}_label_classification"}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Tokenise a split, with the column `labels` if it has any. Several labels of a row are a vector of 0 and 1."""
        values = {"labels": self._labels(split)} if "label" in split.column_names else {}
        return tokenised(split, tokenizer, max_length, multiple, values)

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's logits, (rows, C), as a column of `Rows`."""
        return {}, {"soft": logits["logits"]}

    def score(self, predict: Predict, dev: dict[str, Rows]) -> Scored:
        """Return the metrics, their `score`, and the figures of each label.

        Args:
            predict: returns `logits`, (rows, C).
            dev: the dev split → its rows.

        Raises:
            PotstillError: logits of the model are not finite.
        """
        logits = predict(dev[DEV])["logits"]
        check_logits(logits, DEV)
        return text_scores(self.task, logits, dev[DEV].values["labels"], self.labels, self.metric)

    def _labels(self, split: datasets.Dataset) -> Array:
        return label_array(self.task, split, len(self.labels))


def label_array(task: OwnTask, split: datasets.Dataset, count: int) -> Array:
    """Return the labels of a split: (rows,) classes or scores, or (rows, C) of 0 and 1."""
    if not isinstance(task, MultilabelTask):
        return np.asarray(split["label"][:], np.float32 if isinstance(task, ScoreTask) else np.int64)
    found = np.zeros((len(split), count), np.float32)
    for row, numbers in enumerate(split["label"][:]):
        found[row, numbers] = 1
    return found


def text_scores(
    task: OwnTask,
    logits: Array,
    labels: Array,
    names: tuple[str, ...],
    metric: str | None = None,
    threshold: float | None = None,
) -> Scored:
    """Return the metrics of a task on texts, with the one that decides as `score`.

    Args:
        task: the task.
        logits: (rows, C).
        labels: as `label_array` returns them.
        names: names of the labels.
        metric: the metric that is the score; the task's if None.
        threshold: see `set_scores`.
    """
    if isinstance(task, ScoreTask):
        scored = number_scores(logits[:, 0], labels)
    elif isinstance(task, MultilabelTask):
        scored = set_scores(logits, labels, names, metric or task.metric or task.metrics[0], threshold)
    else:
        scored = class_scores(logits, labels, names)
    return scored | {"score": task.score_of(scored, metric)}
