"""Prepares the tagging of words for a model: rows to train on and to score, the head, and the score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.finetuning.objective import NO_TAG, UNKNOWN_TAG
from potstill.finetuning.own_data import OwnData
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.sentences import TOKENISED_AT_A_TIME, check_logits, class_shape
from potstill.tasks.class_scores import Scored
from potstill.tasks.entities import Scheme
from potstill.tasks.own_rows import OwnRows
from potstill.tasks.own_tags import read_own_tags, read_scored_tags
from potstill.tasks.rows import OnBadRows, print_message
from potstill.tasks.tag_scores import score_tags
from potstill.tasks.task import OwnFiles

Answers = tuple[list[list[int]], list[list[int]]]
"""The numbers of the tags that a model finds in each sentence, and of the right ones."""


class TagData(OwnData[Answers]):
    """The data of a task that tags words: see `OwnData`.

    The first token of a word has its tag. Words beyond the longest input have no prediction and are not scored; their
    number is printed.
    """

    head = AutoModelForTokenClassification

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task."""
        return class_shape(self.labels) | {"problem_type": None}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Tokenise the words of a split. The rows have the column `labels`, one number for each token.

        It is the tag of a word at its first token, `UNKNOWN_TAG` if the split has no tags, and `NO_TAG` elsewhere.

        Args:
            split: with the columns `tokens` and perhaps `tags`.
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
        lost = every = 0
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
            for row, tags in enumerate(chunk.get("tags") or [[UNKNOWN_TAG] * len(words) for words in chunk["tokens"]]):
                labels, before = [], None
                for word in encoded.word_ids(row):
                    labels.append(NO_TAG if word is None or word == before else tags[word])
                    before = word
                every += len(tags)
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
            print_message(
                f"{self.task.title}: {lost:,} of {every:,} words have no token within --max_length {max_length}; they "
                "are neither learned nor scored."
            )
        if not parts:  # a split without rows has the same columns
            names = [*(name for name in tokenizer.model_input_names if name != "attention_mask"), "labels"]
            parts = {name: [np.zeros(0, np.int32)] for name in names}
        padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        return Rows(
            tokens={name: np.concatenate(columns) for name, columns in parts.items()},
            values={},
            lengths=np.array(lengths, np.int64),
            padding=padding | {"labels": NO_TAG},
            multiple=multiple,
            limit=max_length,
        )

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's logits, (tokens, C), as a column of `Rows`."""
        return {"soft": logits["logits"]}, {}

    def _read(self, files: OwnFiles, on_bad_rows: OnBadRows) -> OwnRows:
        if self.names is None:
            found = read_own_tags(files, on_bad_rows)
        else:
            found = read_scored_tags(files, self.names, on_bad_rows)
        if (self.metric or self.task.metric) == "f1" and Scheme.of(found.labels) is None:
            raise PotstillError(f"--metric is f1, which counts entities, but the tags of {self.task.title} mark none.")
        return found

    def _answers(self, logits: dict[str, Array], rows: Rows, name: str) -> Answers:
        labels = rows.tokens["labels"]
        inside = labels != NO_TAG
        check_logits(logits["logits"][inside], name)
        borders = np.cumsum(rows.lengths)[:-1]
        found, wanted = (
            [part[at].tolist() for part, at in zip(np.split(of, borders), np.split(inside, borders), strict=True)]
            for of in (logits["logits"].argmax(axis=1), labels)
        )
        return found, wanted

    def _scored(self, answers: Sequence[Answers], threshold: float | None = None) -> Scored:
        found, wanted = (list(chain.from_iterable(of)) for of in zip(*answers, strict=True))
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
