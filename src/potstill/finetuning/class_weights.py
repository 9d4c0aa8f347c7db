"""Weights of classes for data in which some classes are rare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.finetuning.rows import Array
from potstill.tasks.rows import print_message


def balanced_weights(labels: Array, names: Sequence[str]) -> Tensor:
    """Return weights with which the rows of each class count as much as those of any other class.

    A class with n_c of the n rows has the weight n / (C · n_c), as in scikit-learn (King and Zeng 2001). C is the
    number of classes that have rows. So the mean weight of a row is 1.

    Args:
        labels: (n,) classes.
        names: names of the classes, for the message that says which weights are the lowest and the highest.

    Returns:
        (len(names),) float32; 1 for a class without rows.
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(names))
    present = counts > 0
    weights = np.ones(len(names))
    weights[present] = len(labels) / (present.sum() * counts[present])
    known = np.where(present, weights, weights[present][0])
    low, high = int(known.argmin()), int(known.argmax())
    print_message(
        f"balanced classes: the weights go from {weights[low]:.3g} ({names[low]}, {counts[low]:,} rows) to "
        f"{weights[high]:.3g} ({names[high]}, {counts[high]:,} rows)"
    )
    return torch.from_numpy(weights.astype(np.float32))
