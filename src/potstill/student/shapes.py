"""Shapes of new models: the names and the rule of Turc et al. 2019 (arXiv 1908.08962, section 3)."""

from __future__ import annotations

import re

from potstill.errors import PotstillError

NAMED = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}
"""Name → layers and width."""

HEAD_WIDTH = 64


def sizes_of_shape(shape: str) -> dict[str, int]:
    """Return the sizes of a model: attention heads are 64 wide, and feed-forward layers 4 times as wide as the model.

    Args:
        shape: a name such as "mini", or layers and width such as "6x256".

    Raises:
        PotstillError: it is neither, or the width is no multiple of 64.
    """
    found = re.fullmatch(r"([1-9]\d*)\s*[x×]\s*([1-9]\d*)", shape.strip().lower())
    depth, width = (int(found[1]), int(found[2])) if found else NAMED.get(shape.strip().lower(), (0, 0))
    if not depth:
        raise PotstillError(f"--shape is {shape!r}: give {', '.join(NAMED)}, or layers and width such as 6x256.")
    if width % HEAD_WIDTH:
        raise PotstillError(
            f"--shape is {shape!r}: the width must be a multiple of {HEAD_WIDTH}, which is the width of an attention "
            "head; give other sizes by their own options."
        )
    return {
        "num_hidden_layers": depth,
        "hidden_size": width,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": 4 * width,
    }
