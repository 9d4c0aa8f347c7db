"""Split questions and contexts into windows of token ids: the question, and as much of the context as fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from potstill.errors import PotstillError

QUESTIONS = 1000
"""Number of questions tokenised at a time. Consecutive questions share a context, which is tokenised once."""

Ints = np.ndarray[Any, np.dtype[np.int32]]


def make_windows(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int = 384,
    stride: int = 128,
    max_question_length: int = 64,
) -> datasets.Dataset:
    """Split each question's context into overlapping windows, each with the question before it.

    A window is the tokenizer's encoding of a pair, question first: [CLS] question [SEP] context [SEP]. It has no
    padding. No token of the context is lost. The text of a special token, such as "[SEP]", stays plain text.

    Args:
        dataset: rows with `question`, `context` and `answers`, as from `read_squad` or in the hub's `squad`.
        tokenizer: a fast tokenizer that begins a pair with [CLS].
        max_length: largest number of tokens of a window.
        stride: number of context tokens that two consecutive windows share. (BERT's `doc_stride` is instead the
            distance between their beginnings.)
        max_question_length: number of tokens to keep from the beginning of a question, as in BERT.

    Returns:
        One row per window. Questions keep their order, and the windows of a question follow each other:

        - `example`: number of the question's row.
        - `input_ids`, and `token_type_ids` if the tokenizer has them: (length,).
        - `length`: number of tokens.
        - `start_positions`, `end_positions`: first and last token of the first gold answer; 0, which is [CLS], if there
          is no gold answer or the window does not hold all of it.
        - `answer_mask`: (length,), where an answer may start or end: tokens of the context, and [CLS].
        - `char_start`, `char_end`: (length,), the characters of the context that a token covers, without white space
          around them; 0 outside the context.

    Raises:
        PotstillError: the tokenizer is not of that kind, or the lengths leave no room.
    """
    splitter = WindowSplitter.of(tokenizer, max_length, stride, max_question_length)
    # Arrow tables as input and output save `map` the conversion of every number.
    return (
        dataset.select_columns(["question", "context", "answers"])
        .with_format("arrow")
        .map(
            splitter,
            with_indices=True,
            batched=True,
            batch_size=QUESTIONS,
            remove_columns=["question", "context", "answers"],
            desc="Splitting contexts into windows",
            new_fingerprint=generate_random_fingerprint(),  # or `datasets` pickles the splitter to name the result
        )
        .with_format(None)
    )


@dataclass(frozen=True)
class WindowSplitter:
    """A function that turns a batch of questions into a table of windows; see `make_windows`.

    Attributes:
        tokenizer: the tokenizer, without truncation or padding.
        frame: ids before the question, between question and context, and after the context.
        types: token types of the five parts in order: before the question, question, between, context, after the
            context. None if the model takes none.
        max_length: largest number of tokens of a window.
        stride: number of context tokens that two consecutive windows share.
        max_question_length: number of tokens of a question to keep.
    """

    tokenizer: Tokenizer
    frame: tuple[Ints, Ints, Ints]
    types: tuple[int, int, int, int, int] | None
    max_length: int
    stride: int
    max_question_length: int

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int, max_question_length: int
    ) -> WindowSplitter:
        """Find the ids that a tokenizer puts around the texts of a pair.

        Raises:
            PotstillError: see `make_windows`.
        """
        name = tokenizer.name_or_path or type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise PotstillError(f"The tokenizer {name} is not a fast one: give one that has a tokenizer.json.")
        if max_length > tokenizer.model_max_length:
            raise PotstillError(
                f"max_length is {max_length}, but the model of the tokenizer {name} reads up to "
                f"{tokenizer.model_max_length} tokens: lower it."
            )
        backend = Tokenizer.from_str(backend.to_str())  # a copy, so that the caller's settings do not change
        backend.no_truncation()
        backend.no_padding()
        pair = backend.encode("a", "a")
        of_first, of_second = (
            [place for place, number in enumerate(pair.sequence_ids) if number == sequence] for sequence in (0, 1)
        )
        framed = of_first and of_second and of_first[-1] < of_second[0]
        if not framed or tokenizer.cls_token_id is None or pair.ids[0] != tokenizer.cls_token_id:
            raise PotstillError(
                f"The tokenizer {name} does not begin a pair of texts with [CLS]: question answering needs that token "
                "for questions without an answer."
            )
        borders = slice(0, of_first[0]), slice(of_first[-1] + 1, of_second[0]), slice(of_second[-1] + 1, None)
        before, between, after = (np.array(pair.ids[border], np.int32) for border in borders)
        type_of = pair.type_ids
        types = (type_of[0], type_of[of_first[0]], type_of[of_first[-1] + 1], type_of[of_second[0]], type_of[-1])
        room = max_length - len(pair.ids) + len(of_first) + len(of_second) - max_question_length
        if max_question_length < 1 or stride < 0 or room <= stride:
            raise PotstillError(
                f"Windows of {max_length} tokens with {max_question_length} for the question leave {room} for the "
                f"context, but {stride} of these overlap: raise --max_length, or lower --stride."
            )
        return cls(
            backend,
            (before, between, after),
            types if "token_type_ids" in tokenizer.model_input_names else None,
            max_length,
            stride,
            max_question_length,
        )

    def __call__(self, batch: pa.Table, rows: Sequence[int]) -> pa.Table:
        """Split the contexts of a batch of questions; `rows` are the numbers of the questions."""
        # This option is not part of a pickled tokenizer, so it is set here.
        self.tokenizer.encode_special_tokens = True
        contexts = self._tokenise_contexts(batch["context"].to_pylist())
        questions = self.tokenizer.encode_batch(batch["question"].to_pylist(), add_special_tokens=False)
        answers = batch["answers"].to_pylist()
        windows = [
            window
            for number, question, context, answer in zip(rows, questions, contexts, answers, strict=True)
            for window in self._split(
                number, np.array(question.ids[: self.max_question_length], np.int32), context, answer
            )
        ]
        table = {name: pa.array([window[name] for window in windows], pa.int32()) for name in SCALARS}
        lengths = np.array([window["length"] for window in windows], np.int32)
        borders = pa.array(np.concatenate(([0], lengths.cumsum())).astype(np.int32))
        for name in LISTS:
            if name in windows[0]:
                values = np.concatenate([window[name] for window in windows])
                table[name] = pa.ListArray.from_arrays(borders, pa.array(values))
        return pa.table(table)

    def _tokenise_contexts(self, contexts: list[str]) -> list[_Context]:
        distinct = list(dict.fromkeys(contexts))
        encodings = self.tokenizer.encode_batch(distinct, add_special_tokens=False)
        known = {text: _Context.of(text, encoding) for text, encoding in zip(distinct, encodings, strict=True)}
        return [known[text] for text in contexts]

    def _split(
        self, number: int, question: Ints, context: _Context, answers: dict[str, list[Any]]
    ) -> list[dict[str, Any]]:
        before, between, after = self.frame
        opening = len(before) + len(question) + len(between)
        room = self.max_length - opening - len(after)
        first, last = context.span_of(answers)
        windows = []
        for begin in range(0, max(len(context.ids) - self.stride, 1), room - self.stride):
            part = slice(begin, begin + room)
            ids = np.concatenate((before, question, between, context.ids[part], after))
            closing = len(ids) - len(after)
            char_start, char_end = np.zeros((2, len(ids)), np.int32)
            char_start[opening:closing], char_end[opening:closing] = context.start[part], context.end[part]
            mask = char_end > char_start
            mask[0] = True
            holds = begin <= first and last < begin + closing - opening
            window = {
                "example": number,
                "length": len(ids),
                "start_positions": first - begin + opening if holds else 0,
                "end_positions": last - begin + opening if holds else 0,
                "input_ids": ids,
                "answer_mask": mask,
                "char_start": char_start,
                "char_end": char_end,
            }
            if self.types is not None:
                lengths = len(before), len(question), len(between), closing - opening, len(after)
                window["token_type_ids"] = np.repeat(np.array(self.types, np.int8), lengths)
            windows.append(window)
        return windows


SCALARS = ("example", "length", "start_positions", "end_positions")
LISTS = ("input_ids", "token_type_ids", "answer_mask", "char_start", "char_end")


@dataclass(frozen=True)
class _Context:
    """The ids of a context, and the first character of each and the character after its last one; all (tokens,)."""

    ids: Ints
    start: Ints
    end: Ints

    @classmethod
    def of(cls, text: str, encoding: Any) -> _Context:
        start, end = [], []
        for first, last in encoding.offsets:
            # Byte-level tokens often begin with the space before a word, which does not belong to an answer.
            while first < last and text[first].isspace():
                first += 1
            while first < last and text[last - 1].isspace():
                last -= 1
            start.append(first)
            end.append(last)
        return cls(np.array(encoding.ids, np.int32), np.array(start, np.int32), np.array(end, np.int32))

    def span_of(self, answers: dict[str, list[Any]]) -> tuple[int, int]:
        """Return the first and the last token that overlap with the first answer; (-1, -1) if there is none."""
        if not answers["text"]:
            return -1, -1
        begin = answers["answer_start"][0]
        end = begin + len(answers["text"][0])
        tokens = np.flatnonzero((self.start < end) & (self.end > begin) & (self.end > self.start))
        return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (-1, -1)
