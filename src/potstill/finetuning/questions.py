"""Question answering made ready for a tokenizer: windows to train on, windows to score, the head, the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast
from transformers.utils import logging

from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line
from potstill.finetuning.rows import Array, Rows, drawn
from potstill.tasks.load import no_dataset
from potstill.tasks.questions import QuestionTask
from potstill.tasks.rows import BadRows, OnBadRows
from potstill.tasks.squad import OnBadAnswer, Squad, find_squad, read_squad, split_by_title
from potstill.tasks.squad_answers import Answers, find_answers
from potstill.tasks.squad_score import best_thresholds, score_answers
from potstill.tasks.squad_windows import make_windows

Predict = Callable[[Rows], dict[str, Array]]
"""Rows → `start_logits` and `end_logits`, each (tokens of all rows,)."""


@dataclass(frozen=True)
class QuestionOptions:
    """How questions are read and answered: see `make_windows`, `read_squad` and `find_answers`."""

    stride: int = 128
    max_question_length: int = 64
    max_answer_length: int = 30
    n_best: int = 20
    null_threshold: float = 0.0
    dev_share: float = 0.2
    on_bad_answer: OnBadAnswer = "error"
    on_bad_rows: OnBadRows = "stop"


class QuestionData:
    """SQuAD's data, or any of its format, as one tokenizer reads it.

    Args:
        task: says whether all questions have answers.
        task_data: folder of `train-v1.1.json` and `dev-v1.1.json` (2.0 for `squad_v2`), or of other files that
            `find_squad` finds; or one file, of whose articles a share is held out; the hub's dataset if None.
        options: how to read.
        max_train_samples: questions to train on, see `drawn`; all if None.
        max_eval_samples: questions to score, likewise; all if None.

    Attributes:
        bad_answers: answers left out because their context does not hold them, in both splits.
        bad_rows: split → questions left out because they are not in the format.

    Raises:
        TaskDataAbsentError: the folder has no such file.
        PotstillError: the data cannot be read, has answers at the wrong place, or has questions without an answer
            where all should have one.
    """

    head = AutoModelForQuestionAnswering
    labels = None

    def __init__(
        self,
        task: QuestionTask,
        task_data: str | None,
        options: QuestionOptions,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
    ) -> None:
        self.no_answer = task.no_answer
        self.options = options
        self.bad_answers = 0
        self.bad_rows: dict[str, int] = {}
        if task_data is None:
            if task.hub_name is None:
                raise no_dataset(task)
            train, dev = (_of_hub(task.hub_name, split) for split in ("train", "validation"))
        elif Path(task_data).is_dir():
            files = {split: find_squad(Path(task_data), split, task.versions) for split in ("train", "dev")}
            train, dev = (self._read(split, file) for split, file in files.items())
        else:
            train, dev = split_by_title(self._read("train and dev", task_data), options.dev_share)
        for split in (train, dev):
            if not self.no_answer and not all(answers["text"] for answers in split["answers"][:]):
                raise PotstillError(f"{task_data or task.name} has questions without an answer: give --task squad_v2.")
        self.train = drawn(train, max_train_samples)
        self.dev = {"dev": drawn(dev, max_eval_samples)}

    def shape(self) -> dict[str, Any]:
        """Return what a model's config says of the task: nothing."""
        return {}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Cut the questions of a split into windows: see `make_windows`.

        Args:
            split: `train`, or one of `dev`.
            tokenizer: of the model that is to read it.
            max_length: most tokens a window has.
            multiple: see `Rows`.
        """
        with _quiet_where_others_are():
            windows = make_windows(split, tokenizer, max_length, self.options.stride, self.options.max_question_length)
        lengths = np.asarray(windows["length"][:])
        tokens = {
            name: _flat(windows, name)
            for name in ("input_ids", "token_type_ids", "answer_mask")
            if name in windows.features
        }
        values = {name: np.asarray(windows[name][:], np.int64) for name in ("start_positions", "end_positions")}
        padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        return Rows(tokens, values, lengths, padding, multiple, max_length, windows)

    def soft_columns(self, found: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's logits of start and end, a number a token each, as columns of `Rows`."""
        return {"soft_start": found["start_logits"], "soft_end": found["end_logits"]}, {}

    def answers(self, split: datasets.Dataset, rows: Rows, predict: Predict) -> Answers:
        """Return what a model answers to the questions of a split."""
        logits = predict(rows)
        start, end = (np.split(logits[name], np.cumsum(rows.lengths)[:-1]) for name in ("start_logits", "end_logits"))
        options = self.options
        return find_answers(split, rows.windows, start, end, options.n_best, options.max_answer_length, self.no_answer)

    def score(self, predict: Predict, dev: dict[str, Rows]) -> dict[str, Any]:
        """Return exact match and F1 in percent, F1 being the score; for SQuAD 2.0 also at the best thresholds."""
        split = self.dev["dev"]
        answers = self.answers(split, dev["dev"], predict)
        metrics = score_answers(split, answers.predictions(self.options.null_threshold if self.no_answer else None))
        if self.no_answer:
            metrics |= best_thresholds(split, answers.texts, answers.null_odds)
        return metrics | {"score": metrics["f1"]}

    def _read(self, name: str, path: str | Path) -> datasets.Dataset:
        options = self.options
        squad: Squad = read_squad(path, on_bad_answer=options.on_bad_answer, bad=BadRows(options.on_bad_rows))
        self.bad_answers += squad.bad_answers
        self.bad_rows[name] = squad.bad_rows
        return squad.dataset


def _of_hub(name: str, split: str) -> datasets.Dataset:
    try:
        with quiet_hub():
            return datasets.load_dataset(name, split=split)
    except Exception as error:  # of almost any type
        raise PotstillError(
            f"the dataset {name} cannot be opened on the hub: {first_line(error)}; name a local file or "
            "folder with --task_data."
        ) from error


@contextmanager
def _quiet_where_others_are() -> Iterator[None]:
    """Keep the bars of `datasets` off the terminal where those of transformers are: on potstill's command line."""
    quiet = not logging.is_progress_bar_enabled() and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _flat(windows: datasets.Dataset, name: str) -> Array:
    column = windows.with_format("arrow")[:][name].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False))
