"""Rows on which a model and its export are run and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.export.source import Arrays, Source

Metrics = dict[str, float]
Logits = list[np.ndarray[Any, Any]]
"""The logits of one output, or the part of them that is kept: one array for each row."""


@dataclass(frozen=True)
class Examples:
    """Rows to run, and how their logits are scored.

    Attributes:
        rows: the model's inputs for each row, (L,) arrays.
        score: kept logits of all rows in order, by name of output → metrics.
        keep: number of a row and its logits without padding → the part that `score` needs. All logits if None.
    """

    rows: list[Arrays]
    score: Callable[[dict[str, Logits]], Metrics]
    keep: Callable[[int, np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None


def rows_of_texts(source: Source, texts: list[str], pairs: list[str] | None = None) -> list[Arrays]:
    """Return the model's inputs for each text, without padding."""
    return [
        {name: array[0] for name, array in source.tokenise([text], None if pairs is None else [pairs[number]]).items()}
        for number, text in enumerate(texts)
    ]
