"""Score tags of words: the F1 of entities if the tags mark them, and the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.tasks.entities import Counts, Scheme, entity_counts, in_all


@dataclass(frozen=True)
class TagScores:
    """The scores of predicted tags.

    Attributes:
        metrics: `accuracy` over words, `f1` of entities if the tags mark them, and the latter, if it is there, as
            `score`; in percent.
        per_label: kind of entity, or tag, → precision, recall, F1 and support.
    """

    metrics: dict[str, float]
    per_label: dict[str, dict[str, Any]]


def score_tags(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], names: Sequence[str]) -> TagScores:
    """Score the tags of sentences.

    Args:
        found: the numbers of the predicted tags of each sentence.
        wanted: those of the right tags.
        names: names of the tags, by number.
    """
    counts = [Counts() for _ in names]
    for guesses, numbers in zip(found, wanted, strict=True):
        for guess, number in zip(guesses, numbers, strict=True):
            counts[guess].predicted += 1
            counts[number].expected += 1
            counts[number].right += guess == number
    every = in_all(dict(zip(names, counts, strict=True)))
    accuracy = 100 * every.right / max(every.expected, 1)
    scheme = Scheme.of(names)
    if scheme is None:
        per_tag = {name: one.scores for name, one in zip(names, counts, strict=True)}
        return TagScores({"accuracy": accuracy, "score": accuracy}, per_tag)
    in_names = [[[names[number] for number in row] for row in rows] for rows in (found, wanted)]
    kinds = entity_counts(scheme, *in_names)
    f1 = float(in_all(kinds).scores["f1"])
    return TagScores({"accuracy": accuracy, "f1": f1, "score": f1}, {kind: one.scores for kind, one in kinds.items()})
