"""Prepares the tagging of words for a model: rows to train on and to score, the head, and the score."""

from __future__ import annotations

import json
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.finetuning.objective import NO_TAG
from potstill.finetuning.rows import Array, Rows, sample_rows
from potstill.finetuning.sentences import TOKENISED_AT_A_TIME, Predict, check_logits, class_shape
from potstill.tasks.class_scores import Scored
from potstill.tasks.entities import Scheme
from potstill.tasks.own import TagTask
from potstill.tasks.own_tables import DEV, TRAIN
from potstill.tasks.own_tags import read_own_tags
from potstill.tasks.rows import OnBadRows, print_message
from potstill.tasks.tag_scores import score_tags
from potstill.tasks.task import OwnFiles


class TagData:
    """The data of a task that tags words.

    The first token of a word has its tag. Words beyond the longest input have no prediction and are not scored; their
    number is printed.

    Args:
        task: the task.
        files: its files.
        metric: the metric that is the score; the task's if None.
        max_train_samples: number of sentences to train on, see `sample_rows`; all if None.
        max_eval_samples: number of sentences to score, see `sample_rows`; all if None.
        on_bad_rows: `stop`: a sentence that cannot be used is an error; `skip`: it is left out and counted.

    Attributes:
        labels: names of the tags.
        bad_rows: split → number of sentences left out.
        bad_answers: always 0: only questions have such answers.

    Raises:
        PotstillError: see `read_own_tags`.
    """

    head = AutoModelForTokenClassification

    def __init__(
        self,
        task: TagTask,
        files: OwnFiles,
        metric: str | None = None,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        on_bad_rows: OnBadRows = "stop",
    ) -> None:
        self.task, self.metric, self.bad_answers = task, metric, 0
        found = read_own_tags(files, on_bad_rows)
        self.labels: tuple[str, ...] = found.labels
        self.bad_rows = found.bad_rows
        chosen = metric or task.metric
        if chosen == "f1" and Scheme.of(self.labels) is None:
            raise PotstillError(f"--metric is f1, which counts entities, but the tags of {task.title} mark none.")
        self.train = sample_rows(found.splits[TRAIN], max_train_samples)
        self.dev = {DEV: sample_rows(found.splits[DEV], max_eval_samples)}

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task."""
        return class_shape(self.labels) | {"problem_type": None}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Tokenise the words of a split. The rows have the column `labels`, one tag or `NO_TAG` for each token.

        Args:
            split: with the columns `tokens` and `tags`.
            tokenizer: the tokenizer of the model; it is set to read words one by one, see `read_words`.
            max_length: maximum number of tokens in a row.
            multiple: see `Rows`.

        Raises:
            PotstillError: `max_length` leaves no room for words.
        """
        special = tokenizer.num_special_tokens_to_add()
        if max_length < special + 2:
            raise PotstillError(
                f"--max_length is {max_length}, and {special} of these are special tokens: it must be at least "
                f"{special + 2}."
            )
        read_words(tokenizer)
        parts: dict[str, list[Array]] = {}
        lengths: list[int] = []
        lost = 0
        for start in range(0, len(split), TOKENISED_AT_A_TIME):
            chunk = split[start : start + TOKENISED_AT_A_TIME]
            encoded = tokenizer(
                chunk["tokens"],
                is_split_into_words=True,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            columns = {name: encoded[name] for name in encoded}
            columns["labels"] = []
            for row, tags in enumerate(chunk["tags"]):
                labels, before = [], None
                for word in encoded.word_ids(row):
                    labels.append(NO_TAG if word is None or word == before else tags[word])
                    before = word
                lost += len(tags) - sum(label != NO_TAG for label in labels)
                if not labels:  # no word has a token, and the tokenizer has no special tokens
                    labels.append(NO_TAG)
                    for name in encoded:
                        columns[name][row] = [tokenizer.pad_token_id if name == "input_ids" else 0]
                columns["labels"].append(labels)
            lengths += map(len, columns["labels"])
            for name, column in columns.items():
                flat = np.fromiter((number for row in column for number in row), np.int32)
                parts.setdefault(name, []).append(flat)
        if lost:
            every = sum(map(len, split["tags"][:]))
            print_message(
                f"{self.task.title}: {lost:,} of {every:,} words have no token within --max_length {max_length}; they "
                "are neither learned nor scored."
            )
        padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        return Rows(
            tokens={name: np.concatenate(columns) for name, columns in parts.items()},
            values={},
            lengths=np.array(lengths),
            padding=padding | {"labels": NO_TAG},
            multiple=multiple,
            limit=max_length,
        )

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's logits, (tokens, C), as a column of `Rows`."""
        return {"soft": logits["logits"]}, {}

    def score(self, predict: Predict, dev: dict[str, Rows]) -> Scored:
        """Return the F1 of entities, or the accuracy, as `score`, and the figures of each kind of entity or tag.

        Args:
            predict: returns `logits`, (tokens of all rows, C).
            dev: the dev split → its rows.

        Raises:
            PotstillError: logits of the model are not finite.
        """
        rows = dev[DEV]
        logits, labels = predict(rows)["logits"], rows.tokens["labels"]
        inside = labels != NO_TAG
        check_logits(logits[inside], DEV)
        guesses = logits.argmax(axis=1)
        borders = np.cumsum(rows.lengths)[:-1]
        found, wanted = (
            [part[at].tolist() for part, at in zip(np.split(of, borders), np.split(inside, borders), strict=True)]
            for of in (guesses, labels)
        )
        scored = score_tags(found, wanted, self.labels)
        score = self.task.score_of({name: of for name, of in scored.metrics.items() if name != "score"}, self.metric)
        return scored.metrics | {"score": score, "per_label": scored.per_label}


def read_words(tokenizer: PreTrainedTokenizerFast) -> None:
    """Set a tokenizer to read a list of words as it reads them in a text, with a blank before each.

    A tokenizer on bytes, such as RoBERTa's, has other tokens for a word after a blank. Others are not changed.
    """
    backend = tokenizer.backend_tokenizer.pre_tokenizer
    if backend is None:
        return
    state = json.loads(backend.__getstate__())
    kinds = [state, *state.get("pretokenizers", [])]
    found = [kind for kind in kinds if kind.get("add_prefix_space") is False]
    if not found:
        return
    for kind in found:
        kind["add_prefix_space"] = True
    backend.__setstate__(json.dumps(state).encode())
    tokenizer.backend_tokenizer.pre_tokenizer = backend
    tokenizer.init_kwargs["add_prefix_space"] = True
    tokenizer.add_prefix_space = True
