"""Answers against gold answers: exact match and F1 as SQuAD defines them, and the best threshold for no answer.

Rajpurkar et al. 2016 (arXiv 1606.05250, section 6.1) for exact match and F1; Rajpurkar et al. 2018 (arXiv 1806.03822,
section 5) for questions without an answer. All figures are in percent of the questions asked.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets

from potstill.errors import PotstillError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:an?|the)\b")


def normalise_answer(text: str) -> str:
    """Return what of an answer counts: lower case, without ASCII punctuation, articles and superfluous white space.

    The order matters: punctuation goes without leaving a space, so "U.S." is "us" and "A." an article; an article goes
    as a word, which it may only be once the punctuation has gone, and leaves a space. Punctuation beyond ASCII stays,
    but borders on words.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1.0 if two answers are the same when normalised, else 0.0."""
    return float(normalise_answer(prediction) == normalise_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the F1 of the words of a prediction as a bag, 0 to 1.

    Of nothing (or nothing but articles and punctuation), 1.0 if the other is nothing too, else 0.0. Words are what
    white space separates, so in Chinese it is hardly more than exact match.
    """
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(gold).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))  # the harmonic mean of common / predicted, common / expected


def score_answers(dataset: datasets.Dataset, predictions: Mapping[str, str]) -> dict[str, float]:
    """Score predictions against the questions of a dataset.

    A question counts with its best gold answer. Gold answers of which normalising leaves nothing are left out; if none
    remains, or the question has none at all, the right prediction is "".

    Args:
        dataset: rows with `id` and `answers`.
        predictions: text by id, "" for no answer. A question without a prediction counts 0, even if it has no answer.

    Returns:
        `exact` and `f1` in percent, `total` (questions) and `missing` (those without a prediction); if some questions
        have no answer, also `HasAns_exact`, `HasAns_f1`, `HasAns_total` of those that have one and `NoAns_exact`,
        `NoAns_f1`, `NoAns_total` of the others, where there are any.

    Raises:
        PotstillError: a prediction is for a question that the dataset has not, or is no text; or there is no question.
    """
    golds = _golds(dataset, predictions)
    exact, overlap = (
        {id_: _best(metric, predictions[id_], gold) if id_ in predictions else 0.0 for id_, (gold, _) in golds.items()}
        for metric in (exact_match, f1)
    )
    result: dict[str, float] = {
        "exact": _percent(exact.values()),
        "f1": _percent(overlap.values()),
        "total": len(golds),
        "missing": sum(id_ not in predictions for id_ in golds),
    }
    groups = {"HasAns": [id_ for id_ in golds if golds[id_][1]], "NoAns": [id_ for id_ in golds if not golds[id_][1]]}
    if groups["NoAns"]:
        for name, ids in groups.items():
            if ids:
                result[f"{name}_exact"] = _percent([exact[id_] for id_ in ids])
                result[f"{name}_f1"] = _percent([overlap[id_] for id_ in ids])
                result[f"{name}_total"] = len(ids)
    return result


def best_thresholds(
    dataset: datasets.Dataset, texts: Mapping[str, str], null_odds: Mapping[str, float]
) -> dict[str, float]:
    """Find the thresholds for no answer that score best, each question with `null_odds` above it being unanswered.

    They are fitted to the questions themselves, so the scores are upper bounds; for other questions use the threshold.

    Args:
        dataset: rows with `id` and `answers`.
        texts: the best answer by id, as `Answers.texts`; a question without one counts 0 at every threshold.
        null_odds: score of no answer − score of the best answer, by id.

    Returns:
        `best_exact` and `best_f1` in percent, and `best_exact_thresh` and `best_f1_thresh`, the lowest thresholds that
        reach them: the odds of the last question to be answered, or just below the least if none is.

    Raises:
        PotstillError: as for `score_answers`, or a question has a text but no odds, or odds that are no number.
    """
    golds = _golds(dataset, texts)
    for id_ in texts:
        if id_ not in null_odds or math.isnan(null_odds[id_]):
            raise PotstillError(f"The question {id_!r} has an answer but no odds of having none: give both.")
    result: dict[str, float] = {}
    for name, metric in (("exact", exact_match), ("f1", f1)):
        unanswered = {id_: _best(metric, "", golds[id_][0]) for id_ in texts}
        # Answering a question more, in the order of the odds, changes the sum of the scores by its gain.
        gains: defaultdict[float, float] = defaultdict(float)
        for id_, text in texts.items():
            gains[null_odds[id_]] += _best(metric, text, golds[id_][0]) - unanswered[id_]
        best = total = math.fsum(unanswered.values())
        threshold = math.nextafter(min(gains), -math.inf) if gains else 0.0
        for odds in sorted(gains):
            total += gains[odds]
            if total > best + 1e-9:  # more than the sum was rounded by
                best, threshold = total, odds
        result |= {f"best_{name}": 100 * best / len(golds), f"best_{name}_thresh": threshold}
    return result


def _golds(dataset: datasets.Dataset, predictions: Mapping[str, str]) -> dict[str, tuple[list[str], bool]]:
    """Return the answers that count and whether the question has any, by id."""
    golds = {}
    for id_, answers in zip(dataset["id"][:], dataset["answers"][:], strict=True):
        counting = [text for text in answers["text"] if normalise_answer(text)]
        golds[id_] = (counting or [""], bool(answers["text"]))
    if not golds:
        raise PotstillError("There is no question to score answers to.")
    unknown = [id_ for id_ in predictions if id_ not in golds]
    if unknown:
        raise PotstillError(
            f"{len(unknown)} predictions are for questions that the data has not, the first for {unknown[0]!r}: "
            "are they for another file?"
        )
    for id_, text in predictions.items():
        if not isinstance(text, str):
            raise PotstillError(f"The prediction for question {id_!r} is {text!r}, not text: give '' for no answer.")
    return golds


def _best(metric: Callable[[str, str], float], prediction: str, golds: list[str]) -> float:
    return max(metric(prediction, gold) for gold in golds)


def _percent(scores: Iterable[Any]) -> float:
    values = list(scores)
    return 100 * math.fsum(values) / len(values)
