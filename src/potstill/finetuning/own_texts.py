"""Prepares a task on texts in a user's files for a model: rows to train on and to score, the head, and the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from potstill.finetuning.own_data import OwnData
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.sentences import check_logits, class_shape, score_shape, tokenised
from potstill.tasks.class_scores import Scored, class_scores, number_scores, set_scores
from potstill.tasks.own import MultilabelTask, OwnTask, ScoreTask
from potstill.tasks.own_rows import OwnRows, read_own_rows, read_scored
from potstill.tasks.rows import OnBadRows
from potstill.tasks.task import OwnFiles

Answers = tuple[Array, Array]
"""The logits of rows, (rows, C), and their labels."""


class OwnTextData(OwnData[Answers]):
    """The data of a task that gives a text, or a pair of texts, a label, several labels or a number: see `OwnData`."""

    head = AutoModelForSequenceClassification

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

    def _read(self, files: OwnFiles, on_bad_rows: OnBadRows) -> OwnRows:
        if self.names is not None:
            return read_scored(self.task, files, self.names, on_bad_rows)
        return read_own_rows(self.task, files, on_bad_rows)

    def _answers(self, logits: dict[str, Array], rows: Rows, name: str) -> Answers:
        check_logits(logits["logits"], name)
        return logits["logits"], rows.values["labels"]

    def _scored(self, answers: Sequence[Answers], threshold: float | None = None) -> Scored:
        logits, labels = map(np.concatenate, zip(*answers, strict=True))
        return text_scores(self.task, logits, labels, self.labels, self.metric, threshold)

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
