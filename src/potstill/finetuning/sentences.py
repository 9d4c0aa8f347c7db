"""Prepares sentence tasks for a model: rows to train on and to score, the head, and the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.finetuning.rows import Array, Rows, sample_rows
from potstill.tasks.load import load_split
from potstill.tasks.per_label import class_details
from potstill.tasks.rows import BadRows, OnBadRows
from potstill.tasks.sentence import SentenceTask
from potstill.wording import counted

TOKENISED_AT_A_TIME = 10_000

Predict = Callable[[Rows], dict[str, Array]]
"""Rows → a model's `logits`, (rows, C)."""


class SentenceData:
    """The data of a sentence task.

    Args:
        task: the declaration of the task.
        task_data: see `load_split`.
        max_train_samples: number of rows to train on, see `sample_rows`; all if None.
        max_eval_samples: number of rows of each dev split to score, see `sample_rows`; all if None.
        on_bad_rows: `stop`: a row that cannot be used is an error; `skip`: it is left out and counted.

    Attributes:
        bad_rows: split → number of rows left out.
        bad_answers: always 0: only questions have such answers.

    Raises:
        TaskDataAbsentError: the folder has no data of the task.
        PotstillError: the data cannot be read, or a split has no rows.
    """

    head = AutoModelForSequenceClassification

    def __init__(
        self,
        task: SentenceTask,
        task_data: str | None = None,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        on_bad_rows: OnBadRows = "stop",
    ) -> None:
        self.task = task
        self.bad_answers = 0
        bad = {name: BadRows(on_bad_rows) for name in (task.train, *task.dev)}
        splits = {name: load_split(task, name, task_data, bad=rows) for name, rows in bad.items()}
        self.bad_rows = {name: rows.count for name, rows in bad.items()}
        self.train = sample_rows(splits[task.train], max_train_samples)
        self.dev = {name: sample_rows(splits[name], max_eval_samples) for name in task.dev}
        for name, split in ((task.train, self.train), *self.dev.items()):
            if len(split) == 0 and not (name == task.train and max_train_samples == 0):
                raise PotstillError(
                    f"The {name} set of {task.title} is empty: there is nothing to train on or to score."
                )

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes; empty for a regression."""
        return self.task.labels

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task."""
        if self.task.is_regression:
            return score_shape()
        return class_shape(self.task.labels) | {"problem_type": "single_label_classification"}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Tokenise a split, with the column `labels` if it has any: see `tokenised`."""
        kind = np.float32 if self.task.is_regression else np.int64
        values = {"labels": np.asarray(split["label"][:], kind)} if "label" in split.column_names else {}
        return tokenised(split, tokenizer, max_length, multiple, values)

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's logits, (rows, C), as a column of `Rows`."""
        return {}, {"soft": logits["logits"]}

    def score(self, predict: Predict, dev: dict[str, Rows]) -> dict[str, Any]:
        """Return the metrics and their mean, `score`, in percent; with several dev splits the metrics are by split.

        Classes also have the figures of `class_details`, over the rows of all splits together.

        Args:
            predict: returns `logits`, (rows, C).
            dev: split → rows.

        Raises:
            PotstillError: logits of the model are not finite.
        """
        by_split: dict[str, Any] = {}
        answers: list[tuple[Array, Array]] = []
        for name, rows in dev.items():
            logits = predict(rows)["logits"]
            check_logits(logits, name)
            predictions = logits[:, 0] if self.task.is_regression else logits.argmax(axis=1)
            by_split[name] = self.task.score(predictions, rows.values["labels"])
            answers.append((predictions, rows.values["labels"]))
        metrics = next(iter(by_split.values()))
        if len(by_split) > 1:
            metrics = by_split | {"score": float(np.mean([metrics["score"] for metrics in by_split.values()]))}
        if self.task.is_regression:
            return metrics
        return metrics | class_details(self.task.labels, *map(np.concatenate, zip(*answers, strict=True)))


def score_shape() -> dict[str, Any]:
    """Return the fields of the config of a model that gives a number."""
    return {"num_labels": 1, "problem_type": "regression", "id2label": {0: "score"}, "label2id": {"score": 0}}


def class_shape(labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the config of a model that names labels, but for its `problem_type`."""
    names = dict(enumerate(labels))
    return {
        "num_labels": len(names),
        "id2label": names,
        "label2id": {label: number for number, label in names.items()},
    }


def check_logits(logits: Array, split: str) -> None:
    """Raise a `PotstillError` if logits, (rows, C), are not all finite numbers."""
    wrong = int((~np.isfinite(logits).all(axis=1)).sum())
    if wrong:  # argmax would choose NaN
        raise PotstillError(
            f"The model's logits for {wrong} of the {counted(len(logits), 'row')} of {split} are not finite, so the "
            "model cannot be scored: train with a lower --learning_rate, or in float32 (--bf16 false --fp16 false)."
        )


def tokenised(
    split: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    multiple: int,
    values: dict[str, Array],
) -> Rows:
    """Tokenise texts or pairs of texts.

    Args:
        split: with the column `text`, and perhaps `pair`.
        tokenizer: the tokenizer of the model.
        max_length: maximum number of tokens in a row; of a pair, the longer sentence is truncated first.
        multiple: see `Rows`.
        values: columns of the rows, one value for each.

    Raises:
        PotstillError: `max_length` leaves no room for text.
    """
    special = tokenizer.num_special_tokens_to_add(pair="pair" in split.column_names)
    if max_length < special + 2:
        raise PotstillError(
            f"--max_length is {max_length}, and {special} of these are special tokens: it must be at least "
            f"{special + 2}."
        )
    parts: dict[str, list[Array]] = {}
    lengths: list[int] = []
    for start in range(0, len(split), TOKENISED_AT_A_TIME):
        chunk = split[start : start + TOKENISED_AT_A_TIME]
        encoded = tokenizer(
            chunk["text"], chunk.get("pair"), truncation=True, max_length=max_length, return_attention_mask=False
        )
        for row in encoded["input_ids"]:
            if not row:  # an empty text and a tokenizer without special tokens
                row.append(tokenizer.pad_token_id)
        lengths += map(len, encoded["input_ids"])
        for name, column in encoded.items():
            flat = np.fromiter(chain.from_iterable(column), np.int32)
            parts.setdefault(name, []).append(flat)
    if not parts:  # a split without rows has the same columns
        parts = {name: [np.zeros(0, np.int32)] for name in tokenizer.model_input_names if name != "attention_mask"}
    return Rows(
        tokens={name: np.concatenate(columns) for name, columns in parts.items()},
        values=values,
        lengths=np.array(lengths, np.int64),
        padding={"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id},
        multiple=multiple,
        limit=max_length,
    )
