"""Choose rows at random, with the same share of each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def stratified(strata: Sequence[Any], share: float, seed: int = 0) -> list[int]:
    """Return a share of the rows, in order, with the same share of each stratum as nearly as whole rows allow.

    At least one row of each stratum is left, so that each can be learned.

    Args:
        strata: the stratum of each row.
        share: the share of the rows, between 0 and 1.
        seed: of the choice within a stratum.
    """
    order = np.random.default_rng(seed).permutation(len(strata)).tolist()
    groups: dict[Any, list[int]] = {}
    for place in order:
        groups.setdefault(strata[place], []).append(place)
    chosen, seen = [], 0.0
    for name in sorted(groups, key=lambda name: (len(groups[name]), str(name))):
        group = groups[name]
        # The fractions of small groups add up, so that many groups of 3 rows give their share together.
        wanted = len(group) * share + seen
        count = max(0, min(len(group) - 1, round(wanted)))
        seen = min(1.0, wanted - count)
        chosen += group[:count]
    return sorted(chosen)
