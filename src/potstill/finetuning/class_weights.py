"""Weights of classes for data in which some classes are rare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.finetuning.rows import NO_LABEL, Array, Rows
from potstill.tasks.rows import print_message


def weights_of(rows: Rows, names: Sequence[str]) -> Tensor:
    """Return the balanced weights of the labels of rows: of classes, of tags, or of several labels a row.

    Returns:
        (C,) float32: see `balanced_weights` for classes and tags, and `positive_weights` for several labels.
    """
    if "labels" in rows.tokens:
        tags = rows.tokens["labels"]
        return balanced_weights(tags[tags != NO_LABEL], names, "words")
    labels = rows.values["labels"]
    return positive_weights(labels, names) if labels.ndim == 2 else balanced_weights(labels, names)


def balanced_weights(labels: Array, names: Sequence[str], unit: str = "rows") -> Tensor:
    """Return weights with which the rows of each class count as much as those of any other class.

    A class with n_c of the n rows has the weight n / (C · n_c), as in scikit-learn (King and Zeng 2001). C is the
    number of classes that have rows. So the mean weight of a row is 1.

    Args:
        labels: (n,) classes.
        names: names of the classes, for the message that says which weights are the lowest and the highest.
        unit: the word for what has a class, for this message.

    Returns:
        (len(names),) float32; 1 for a class without rows.
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(names))
    present = counts > 0
    weights = np.ones(len(names))
    weights[present] = len(labels) / (present.sum() * counts[present])
    _tell(weights, counts, names, unit)
    return torch.from_numpy(weights.astype(np.float32))


def positive_weights(labels: Array, names: Sequence[str]) -> Tensor:
    """Return weights with which the rows that have a label count as much as those that do not have it.

    A label of n_c of the n rows has the weight (n - n_c) / n_c, as torch recommends for `pos_weight`.

    Args:
        labels: (n, C) of 0 and 1.
        names: names of the labels.

    Returns:
        (C,) float32; 1 for a label without rows, or of all rows.
    """
    counts = (np.asarray(labels) > 0).sum(axis=0)
    some = (counts > 0) & (counts < len(labels))
    weights = np.where(some, (len(labels) - counts) / np.maximum(counts, 1), 1.0)
    _tell(weights, counts, names, "rows")
    return torch.from_numpy(weights.astype(np.float32))


def _tell(weights: Array, counts: Array, names: Sequence[str], unit: str) -> None:
    places = np.flatnonzero(counts)
    low, high = (int(places[pick(weights[places])]) for pick in (np.argmin, np.argmax))
    print_message(
        f"balanced classes: the weights go from {weights[low]:.3g} ({names[low]}, {counts[low]:,} {unit}) to "
        f"{weights[high]:.3g} ({names[high]}, {counts[high]:,} {unit})"
    )
