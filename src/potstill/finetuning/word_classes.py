"""The classes of words, within which words may replace each other: the tags of a tagger, or the endings of words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.finetuning.models import load_config, load_trained
from potstill.finetuning.predict import predict
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.tags import read_words
from potstill.student import takes_token_types, usable_length
from potstill.student.loading import check_vocabulary

NONE = -1
"""The class of a word that is not replaced."""

SHORTEST, LETTERS = 4, 2


def ending(word: str) -> str | None:
    """Return the class of a word by its last two letters; None if it is not replaced.

    Endings tell parts of speech apart in many languages: -ly, -ed, -ng, -er. A word with a digit is of the class of
    numbers. Words below four letters are not replaced, because most of them are words such as "not", "the" and "but",
    whose endings say nothing. Words that begin with a capital letter replace each other only.
    """
    if any(letter.isdigit() for letter in word):
        return "0"
    if len(word) < SHORTEST or not word[-LETTERS:].isalpha():
        return None
    return word[-LETTERS:].lower() + ("A" if word[0].isupper() else "")


class Endings:
    """Gives words the number of their class by `ending`, in the order in which the classes are seen first."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the class of each word of each sentence."""
        kinds = ((ending(word) for word in words) for words in sentences)
        return [
            [NONE if kind is None else self._numbers.setdefault(kind, len(self._numbers)) for kind in found]
            for found in kinds
        ]


class Tagger:
    """Gives words their tag by a model for token classification.

    Args:
        name: folder or hub name of the model.
        device: where it runs.
        batch_size: sentences at a time.

    Raises:
        PotstillError: there is no such model, or it is not for token classification.
    """

    def __init__(self, name: str, device: torch.device, batch_size: int) -> None:
        config = load_config(name, "tagger")
        self.model = load_trained(AutoModelForTokenClassification, name, config, "tagger").to(device)
        self.tokenizer = load_tokenizer(name, takes_token_types(config), "tagger")
        check_vocabulary(self.tokenizer, config, f"the tagger {name!r}")
        read_words(self.tokenizer)
        self.batch_size = batch_size
        longest = self.tokenizer.model_max_length
        self.max_length = min(longest, usable_length(config) or longest)
        if self.max_length > 1_000_000 or self.max_length <= self.tokenizer.num_special_tokens_to_add():
            raise PotstillError(f"the tagger {name!r} does not say how many tokens it reads: set its model_max_length")

    def __call__(self, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the tag of each word of each sentence; `NONE` for words beyond the longest input."""
        encoded: Any = self.tokenizer(
            [list(words) for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
        )
        found = [[NONE] * len(words) for words in sentences]
        kept = [row for row, ids in enumerate(encoded["input_ids"]) if ids]
        if not kept:
            return found
        logits = predict(self.model, self._rows(encoded, kept), self.batch_size)["logits"].argmax(axis=1)
        start = 0
        for row in kept:
            places = encoded.word_ids(row)
            for place, word in enumerate(places):
                if word is not None and found[row][word] == NONE:  # the first token of a word has its tag
                    found[row][word] = int(logits[start + place])
            start += len(places)
        return found

    def _rows(self, encoded: Any, kept: Sequence[int]) -> Rows:
        def flat(name: str) -> Array:
            return np.fromiter(chain.from_iterable(encoded[name][row] for row in kept), np.int32)

        padding = {"input_ids": self.tokenizer.pad_token_id or 0}
        lengths = np.array([len(encoded["input_ids"][row]) for row in kept])
        return Rows({name: flat(name) for name in encoded}, {}, lengths, padding, limit=self.max_length)
