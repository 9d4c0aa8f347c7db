"""Turn start and end logits into answers: the best spans of each question over all its windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from potstill.errors import PotstillError

WINDOWS = 64
"""Number of windows whose spans are scored at a time: about 6 MB at 384 tokens and spans of up to 30."""


@dataclass(frozen=True)
class Candidate:
    """One answer that a model considers.

    Attributes:
        text: the exact text of the context; empty for no answer.
        start: number of its first character in the context; None for no answer.
        score: start logit + end logit.
        probability: softmax of the scores over the candidates of the question.
    """

    text: str
    start: int | None
    score: float
    probability: float


@dataclass(frozen=True)
class Answers:
    """A model's answers to each question, by `id`.

    Attributes:
        candidates: the best answers, best first. They include "no answer" if that was requested.
        texts: the best answer; empty only if the context holds no text.
        null_odds: score of no answer − score of the best answer. The score of no answer is start logit + end logit of
            [CLS], the minimum over the windows, because one window with an answer is enough.
    """

    candidates: dict[str, list[Candidate]]
    texts: dict[str, str]
    null_odds: dict[str, float]

    def predictions(self, threshold: float | None = None) -> dict[str, str]:
        """Return the text to score for each question.

        Args:
            threshold: questions with `null_odds` above it get no answer (""). If None, all get one, as in SQuAD 1.1.
        """
        if threshold is None:
            return dict(self.texts)
        return {id_: "" if self.null_odds[id_] > threshold else text for id_, text in self.texts.items()}


def find_answers(
    dataset: datasets.Dataset,
    windows: datasets.Dataset,
    start_logits: Sequence[Any],
    end_logits: Sequence[Any],
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer: bool = False,
) -> Answers:
    """Find the best answers to each question.

    An answer is a span of context tokens in a window, with first ≤ last. Its score is the sum of the two logits, as in
    Devlin et al. (arXiv 1810.04805, section 4.2). All spans are compared, not only those with the best starts and ends.
    If several windows hold a span, its best score counts. Among equal scores the earliest span wins, then the shortest.

    Args:
        dataset: rows with `id` and `context`.
        windows: the windows that `make_windows` made from the dataset.
        start_logits: for each window (length,), or longer if padded at the end.
        end_logits: the same for the ends.
        n_best: largest number of answers to keep for a question.
        max_answer_length: largest number of tokens of an answer.
        no_answer: whether "no answer" is one of the candidates, as in SQuAD 2.0.

    Raises:
        PotstillError: a token has no start or end logit, a logit is not finite, or a question has no window.
    """
    if n_best < 1 or max_answer_length < 1:
        raise PotstillError(f"n_best is {n_best} and max_answer_length {max_answer_length}: both must be at least 1.")
    ids, contexts = dataset["id"][:], dataset["context"][:]
    spans, nulls = _best_spans(windows, start_logits, end_logits, n_best, max_answer_length, len(ids))
    candidates: dict[str, list[Candidate]] = {}
    texts, null_odds = {}, {}
    for number, (id_, context) in enumerate(zip(ids, contexts, strict=True)):
        best = spans[number]
        texts[id_] = context[best[0][0] : best[0][1]] if best else ""
        null_odds[id_] = float(nulls[number]) - (best[0][2] if best else -np.inf)
        found: list[tuple[str, int | None, float]] = [(context[start:end], start, score) for start, end, score in best]
        if no_answer or not best:
            found.append(("", None, float(nulls[number])))
            found.sort(key=lambda candidate: -candidate[2])
        exponentials = np.exp(np.array([score for *_, score in found]) - found[0][2])
        probabilities = (exponentials / exponentials.sum()).tolist()
        candidates[id_] = [Candidate(*it, probability) for it, probability in zip(found, probabilities, strict=True)]
    return Answers(candidates, texts, null_odds)


Span = tuple[int, int, float]
"""First character, character after the last one, score."""


def _best_spans(
    windows: datasets.Dataset, start_logits: Any, end_logits: Any, n_best: int, max_answer_length: int, questions: int
) -> tuple[list[list[Span]], np.ndarray[Any, Any]]:
    """Return the best distinct spans of each question, best first, and the score of no answer, (questions,)."""
    if not len(windows) == len(start_logits) == len(end_logits):
        raise PotstillError(
            f"There are {len(windows)} windows, but start logits for {len(start_logits)} and end logits for "
            f"{len(end_logits)}: give both for each window."
        )
    nulls = np.full(questions, np.inf)
    found: list[list[np.ndarray[Any, Any]]] = []
    for first, batch in _batches(windows):
        start, end = (
            _padded(logits[first : first + len(batch["length"])], batch["length"], first, name)
            for logits, name in ((start_logits, "start"), (end_logits, "end"))
        )
        np.minimum.at(nulls, batch["example"], start[:, 0] + end[:, 0])
        row, begin, last, score = _best_of_windows(start, end, batch["answer_mask"], n_best, max_answer_length)
        found.append([batch["example"][row], batch["char_start"][row, begin], batch["char_end"][row, last], score])
    if np.isinf(nulls).any():
        raise PotstillError(
            f"Question {np.isinf(nulls).argmax() + 1} of {questions} has no window: give the windows of all questions."
        )
    example, begin, end, score = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((end, begin, -score, example))
    spans: list[list[Span]] = [[] for _ in range(questions)]
    seen: set[tuple[int, int, int]] = set()
    for number, *span in zip(*(column[order].tolist() for column in (example, begin, end, score)), strict=True):
        key = (number, span[0], span[1])
        if key not in seen and len(spans[number]) < n_best:
            seen.add(key)
            spans[number].append(tuple(span))
    return spans, nulls


def _batches(windows: datasets.Dataset) -> Iterator[tuple[int, dict[str, np.ndarray[Any, Any]]]]:
    """Yield batches of windows: the number of the first one, and the columns, (windows,) or (windows, longest)."""
    table = windows.select_columns(["example", "length", "answer_mask", "char_start", "char_end"]).with_format("arrow")
    for first in range(0, len(windows), WINDOWS):
        part = table[first : first + WINDOWS].combine_chunks()
        columns = {name: part[name].to_numpy() for name in ("example", "length")}
        inside = np.arange(columns["length"].max()) < columns["length"][:, None]
        for name in ("answer_mask", "char_start", "char_end"):
            values = part[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            columns[name] = np.zeros(inside.shape, values.dtype)
            columns[name][inside] = values
        yield first, columns


def _padded(rows: Any, lengths: np.ndarray[Any, Any], first: int, name: str) -> np.ndarray[Any, Any]:
    """Return the logits of windows, (windows, longest), with 0 after the end of each window."""
    padded = np.zeros((len(lengths), lengths.max()))
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        values = np.asarray(row)
        if values.ndim != 1 or len(values) < length:
            raise PotstillError(
                f"The {name} logits of window {first + number} have the shape {values.shape}, but the window has "
                f"{length} tokens: give one logit for each token."
            )
        padded[number, :length] = values[:length]
    if not np.isfinite(padded).all():
        raise PotstillError(
            f"The {name} logits of window {first + int((~np.isfinite(padded)).any(1).argmax())} are not all finite "
            "numbers: the model that gave them is broken."
        )
    return padded


def _best_of_windows(
    start: np.ndarray[Any, Any], end: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], n_best: int, longest: int
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return window, first token, last token and score of the best spans of each window, unordered, each (spans,)."""
    mask = mask.copy()
    mask[:, 0] = False  # [CLS]
    start, end = np.where(mask, start, -np.inf), np.where(mask, end, -np.inf)
    end = np.pad(end, ((0, 0), (0, longest - 1)), constant_values=-np.inf)
    # scores[w, i, k]: the span of window w from token i to token i + k.
    scores = start[:, :, None] + np.lib.stride_tricks.sliding_window_view(end, longest, axis=1)
    # The best n spans begin at the n tokens with the highest-scoring spans, so the other tokens can be ignored.
    begins = _largest(scores.max(axis=2), n_best)
    scores = np.take_along_axis(scores, begins[:, :, None], axis=1).reshape(len(start), -1)
    best = _largest(scores, n_best)
    score = np.take_along_axis(scores, best, axis=1)
    row, place = np.nonzero(np.isfinite(score))
    which, extent = np.divmod(best[row, place], longest)
    begin = begins[row, which]
    return row, begin, begin + extent, score[row, place]


def _largest(values: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return the positions of the largest values of each row, unordered, (rows, at most count)."""
    count = min(count, values.shape[1])
    return np.argpartition(values, -count, axis=1)[:, -count:]
