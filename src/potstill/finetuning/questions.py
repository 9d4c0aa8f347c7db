"""Prepares question answering for a model: windows to train on and to score, the head, and the score."""

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
from potstill.finetuning.rows import Array, Rows, sample_rows
from potstill.hub_access import hub_or_cache
from potstill.tasks.load import no_dataset
from potstill.tasks.questions import QuestionTask
from potstill.tasks.rows import BadRows, OnBadRows, print_message
from potstill.tasks.squad import OnBadAnswer, Squad, find_squad, read_squad, split_by_title
from potstill.tasks.squad_answers import Answers, find_answers
from potstill.tasks.squad_score import best_thresholds, score_answers
from potstill.tasks.squad_windows import make_windows
from potstill.tasks.task import OwnFiles

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
    """The data of SQuAD, or any data in its format.

    Args:
        task: the declaration of the task; its `no_answer` allows questions without an answer.
        task_data: folder with `train-v1.1.json` and `dev-v1.1.json` (2.0 for `squad_v2`), or with other files that
            `find_squad` finds; or one file, of which a share of the articles is held out; the hub's dataset if None.
        options: how to read the data.
        max_train_samples: number of questions to train on, see `sample_rows`; all if None.
        max_eval_samples: number of questions to score, see `sample_rows`; all if None.
        files: the user's own files, in place of `task_data`.

    Attributes:
        bad_answers: number of answers in both splits left out because their context does not contain them.
        bad_rows: split → number of questions left out because their format is wrong.

    Raises:
        TaskDataAbsentError: the folder has no such file.
        PotstillError: the data cannot be read, has answers at a wrong position, or has questions without an answer
            although the task does not allow them.
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
        files: OwnFiles | None = None,
    ) -> None:
        self.options = options
        self.bad_answers = 0
        self.bad_rows: dict[str, int] = {}
        if files is not None:
            if files.train is None:
                raise PotstillError("--train_data is missing: name a file of questions to train on.")
            # Several files are refused before, see `FinetuneArguments` and `read_task`.
            train = self._read("train", str(files.train))
            if files.eval is None:
                train, dev = split_by_title(train, files.dev_share)
                print_message(
                    f"{files.train}: {len(dev):,} of {len(train) + len(dev):,} questions are held out and scored "
                    "(whole articles; the same for every seed)."
                )
            else:
                dev = self._read("dev", str(files.eval))
        elif task_data is None:
            if task.hub_name is None:
                raise no_dataset(task)
            train, dev = (_of_hub(task.hub_name, split) for split in ("train", "validation"))
        elif Path(task_data).is_dir():
            found = {split: find_squad(Path(task_data), split, task.versions) for split in ("train", "dev")}
            train, dev = (self._read(split, file) for split, file in found.items())
        else:
            train, dev = split_by_title(self._read("train and dev", task_data), options.dev_share)
        some_without = not all(answers["text"] for split in (train, dev) for answers in split["answers"][:])
        self.no_answer = some_without if task.no_answer is None else task.no_answer
        for split in (train, dev):
            if not self.no_answer and not all(answers["text"] for answers in split["answers"][:]):
                raise PotstillError(f"{task_data or task.name} has questions without an answer: give --task squad_v2.")
        self.train = sample_rows(train, max_train_samples)
        self.dev = {"dev": sample_rows(dev, max_eval_samples)}

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task: none."""
        return {}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Split the questions and contexts of a split into windows: see `make_windows`.

        Args:
            split: `train`, or one of `dev`.
            tokenizer: the tokenizer of the model.
            max_length: maximum number of tokens in a window.
            multiple: see `Rows`.
        """
        with _progress_bars_as_in_transformers():
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

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's start and end logits, each one number per token, as columns of `Rows`."""
        return {"soft_start": logits["start_logits"], "soft_end": logits["end_logits"]}, {}

    def answers(self, split: datasets.Dataset, rows: Rows, predict: Predict) -> Answers:
        """Return a model's answers to the questions of a split."""
        logits = predict(rows)
        start, end = (np.split(logits[name], np.cumsum(rows.lengths)[:-1]) for name in ("start_logits", "end_logits"))
        options = self.options
        return find_answers(split, rows.windows, start, end, options.n_best, options.max_answer_length, self.no_answer)

    def score(self, predict: Predict, dev: dict[str, Rows]) -> dict[str, Any]:
        """Return exact match, F1 and the score, which is F1, in percent; for SQuAD 2.0 also at the best thresholds."""
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
        with quiet_hub(), hub_or_cache():
            return datasets.load_dataset(name, split=split)
    except Exception as error:  # of almost any type
        raise PotstillError(
            f"the dataset {name} cannot be opened on the hub: {first_line(error)}; name a local file or "
            "folder with --task_data."
        ) from error


@contextmanager
def _progress_bars_as_in_transformers() -> Iterator[None]:
    """Hide the progress bars of `datasets` if those of transformers are hidden, as on potstill's command line."""
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
