"""Score answers against gold answers: SQuAD's exact match and F1, and the best threshold for no answer.

Rajpurkar et al. 2016 (arXiv 1606.05250, section 6.1) define exact match and F1; Rajpurkar et al. 2018 (arXiv
1806.03822, section 5) treat questions without an answer. All figures are in percent of the questions.
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
    """Return an answer in lower case, without ASCII punctuation, articles and superfluous white space.

    The order matters. Punctuation is removed first and leaves no space, so "U.S." becomes "us", and "A." becomes an
    article. Then each article that is a word of its own is replaced by a space. Other punctuation stays, and separates
    words when articles are searched.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1.0 if two answers are the same after normalisation, else 0.0."""
    return float(normalise_answer(prediction) == normalise_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the F1 of the bag of words of a prediction, 0 to 1.

    If one text has no words after normalisation, the F1 is 1.0 if the other has none either, else 0.0. White space
    separates words, so for Chinese text F1 differs little from exact match.
    """
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(gold).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))  # the harmonic mean of common / predicted, common / expected


def score_answers(dataset: datasets.Dataset, predictions: Mapping[str, str]) -> dict[str, float]:
    """Score predictions against the questions of a dataset.

    The gold answer with the best score counts. Gold answers that are empty after normalisation are left out. If none
    remains, or the question has none, the right prediction is "".

    Args:
        dataset: rows with `id` and `answers`.
        predictions: id → text, "" for no answer. A question without a prediction scores 0, even if it has no answer.

    Returns:
        `exact` and `f1` in percent, `total` (number of questions) and `missing` (number without a prediction). If some
        questions have no answer, also `NoAns_exact`, `NoAns_f1` and `NoAns_total` of these, and `HasAns_exact`,
        `HasAns_f1` and `HasAns_total` of the others, if there are any.

    Raises:
        PotstillError: a prediction is for a question that is not in the dataset, or is no text; or there is no
            question.
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
    """Find the thresholds for no answer that score best. A question with `null_odds` above a threshold gets no answer.

    The thresholds are fitted to these questions, so the scores are upper bounds. Use a threshold for other questions.

    Args:
        dataset: rows with `id` and `answers`.
        texts: id → best answer, as in `Answers.texts`; a question without one scores 0 at every threshold.
        null_odds: id → score of no answer − score of the best answer.

    Returns:
        `best_exact` and `best_f1` in percent, and `best_exact_thresh` and `best_f1_thresh`, the lowest thresholds that
        reach them. Each is the highest odds of an answered question, or just below the lowest odds if none is answered.

    Raises:
        PotstillError: see `score_answers`; or a question has a text but no odds, or its odds are not a number.
    """
    golds = _golds(dataset, texts)
    for id_ in texts:
        if id_ not in null_odds or math.isnan(null_odds[id_]):
            raise PotstillError(f"The question {id_!r} has an answer but no odds of having none: give both.")
    result: dict[str, float] = {}
    for name, metric in (("exact", exact_match), ("f1", f1)):
        unanswered = {id_: _best(metric, "", golds[id_][0]) for id_ in texts}
        # Questions are answered in the order of their odds. Each one changes the sum of the scores by its gain.
        gains: defaultdict[float, float] = defaultdict(float)
        for id_, text in texts.items():
            gains[null_odds[id_]] += _best(metric, text, golds[id_][0]) - unanswered[id_]
        best = total = math.fsum(unanswered.values())
        threshold = math.nextafter(min(gains), -math.inf) if gains else 0.0
        for odds in sorted(gains):
            total += gains[odds]
            if total > best + 1e-9:  # larger than a rounding error
                best, threshold = total, odds
        result |= {f"best_{name}": 100 * best / len(golds), f"best_{name}_thresh": threshold}
    return result


def _golds(dataset: datasets.Dataset, predictions: Mapping[str, str]) -> dict[str, tuple[list[str], bool]]:
    """Return id → the gold answers that count, and whether the question has any gold answer."""
    golds = {}
    for id_, answers in zip(dataset["id"][:], dataset["answers"][:], strict=True):
        counting = [text for text in answers["text"] if normalise_answer(text)]
        golds[id_] = (counting or [""], bool(answers["text"]))
    if not golds:
        raise PotstillError("There is no question to score answers to.")
    unknown = [id_ for id_ in predictions if id_ not in golds]
    if unknown:
        raise PotstillError(
            f"{len(unknown)} predictions are for questions that are not in the data, the first for {unknown[0]!r}: "
            "check that data and predictions belong together."
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
