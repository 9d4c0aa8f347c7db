"""The part of a card that says how each label fares, and which labels are taken for which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from potstill.report.markdown import plain, table
from potstill.wording import agreeing, counted

PICTURE = "confusion.png"
"""The file beside a card with the picture of the confusion matrix."""

MOST_ROWS = 100
"""A card names at most so many labels."""

MOST_PAIRS = 10

MOST_DRAWN = 200
"""A confusion matrix of more labels is not drawn: its names cannot be read, and the picture takes gigabytes."""


class Confused(NamedTuple):
    """A label that is taken for another one.

    Attributes:
        correct: name of the correct label.
        predicted: name of the predicted label.
        rows: number of rows.
        share: the same in percent of the rows of the correct label.
    """

    correct: str
    predicted: str
    rows: int
    share: float


def is_drawn(confusion: Mapping[str, Any] | None) -> bool:
    """Return whether a card has the picture of a confusion matrix."""
    return confusion is not None and len(confusion["labels"]) <= MOST_DRAWN


def confused_pairs(labels: Sequence[str], counts: Sequence[Sequence[int]], most: int = MOST_PAIRS) -> list[Confused]:
    """Return the pairs of labels that are confused most often, the most frequent first.

    Args:
        labels: (C,) names.
        counts: (C, C), a row for each correct label and a column for each predicted one.
        most: number of pairs to return, if there are as many.
    """
    found = [
        Confused(labels[row], labels[column], count, 100 * count / max(sum(counts[row]), 1))
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count and row != column
    ]
    return sorted(found, key=lambda pair: (-pair.rows, -pair.share))[:most]


def label_section(results: Mapping[str, Any]) -> list[str]:
    """Return the section of a card on labels, as paragraphs of Markdown; nothing for a result without labels.

    Args:
        results: measured figures, as in `RunResult`.
    """
    per_label, confusion = results.get("per_label"), results.get("confusion")
    if not per_label:
        return []
    order = sorted(per_label, key=lambda label: (per_label[label]["f1"], -per_label[label]["support"]))
    rows = [
        [
            plain(label),
            *(f"{per_label[label][name]:.1f}" for name in ("precision", "recall", "f1")),
            f"{int(per_label[label]['support']):,}",
        ]
        for label in order[:MOST_ROWS]
    ]
    left_out = len(order) - len(rows)
    more = (
        f" The {counted(left_out, 'label')} with a higher F1 {agreeing(left_out, 'is', 'are')} in `results.json`."
        if left_out
        else ""
    )
    parts = [
        "## Labels",
        f"The lowest F1 first; support is the number of rows, words or entities.{more}",
        table(["label", "precision", "recall", "F1", "support"], rows, figures=True),
    ]
    if confusion:
        if is_drawn(confusion):
            parts.append(f"![Confusion matrix: correct labels by predicted labels]({PICTURE})")
        pairs = confused_pairs(confusion["labels"], confusion["counts"])
        if pairs:
            lines = [
                f"- {plain(pair.correct)} is taken for {plain(pair.predicted)} in {counted(pair.rows, 'row')} "
                f"({pair.share:.1f} %)."
                for pair in pairs
            ]
            parts += ["The most frequent confusions:", "\n".join(lines)]
    return parts
