"""The sizes of a model besides its depth: what is asked for, what is possible, and a config that has them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.student.family import family_of


@dataclass(frozen=True)
class Sizes:
    """Sizes of every layer of a model.

    Attributes:
        hidden_size: H, width of the hidden states.
        num_attention_heads: heads of a layer. Each is hidden_size / num_attention_heads wide.
        intermediate_size: width of the feed-forward layers.
    """

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int


def sizes_of(config: PreTrainedConfig) -> Sizes:
    """Return the sizes in a config. A config without a feed-forward width means four times the hidden size."""
    intermediate = getattr(config, family_of(config).intermediate_name, None) or 4 * config.hidden_size
    return Sizes(config.hidden_size, getattr(config, "num_attention_heads", 1), intermediate)


def with_sizes(config: PreTrainedConfig, sizes: Sizes) -> PreTrainedConfig:
    """Return a copy of a config with other sizes. Embeddings that are as wide as the layers stay so.

    Raises:
        PotstillError: the config has no name for one of the sizes.
    """
    before, changed = sizes_of(config), copy.deepcopy(config)
    names = {"hidden_size": "hidden_size", "num_attention_heads": "num_attention_heads"}
    names["intermediate_size"] = family_of(config).intermediate_name
    for size, name in names.items():
        if getattr(sizes, size) == getattr(before, size):
            continue
        if not hasattr(config, name):
            raise PotstillError(
                f"the {size} of a model of type {config.model_type!r} cannot be chosen, because its config has no "
                f"{name}: leave all sizes but the number of layers out"
            )
        setattr(changed, name, getattr(sizes, size))
    if getattr(config, "embedding_size", None) == before.hidden_size:
        changed.embedding_size = sizes.hidden_size
    return changed


def wanted_sizes(
    config: PreTrainedConfig,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    copied: bool = True,
) -> Sizes:
    """Return the sizes of a student, from those that are given.

    Without a hidden size the student has that of `config`. Without a number of heads its heads are as wide as those of
    `config`. Without a feed-forward width this keeps its ratio to the hidden size.

    Args:
        config: of the student at full width.
        hidden_size: width of the hidden states; None for what follows from the others.
        num_attention_heads: likewise.
        intermediate_size: likewise.
        copied: whether weights are copied from a model of these sizes. Then no size may be larger than there, and heads
            are copied whole.

    Raises:
        PotstillError: there is no student of these sizes.
    """
    full = sizes_of(config)
    head_size = full.hidden_size // full.num_attention_heads
    asked = {
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size,
    }
    for name, value in asked.items():
        most = getattr(full, name)
        if value is not None and value < 1:
            raise PotstillError(f"{name} is {value}: it must be above 0")
        if value is not None and value > most and copied:
            raise PotstillError(
                f"{name} is {value}, but the teacher's is {most} and a student that starts from its weights has no "
                "more: lower it, or start from random weights (initialise: random)"
            )
    hidden = full.hidden_size if hidden_size is None else hidden_size
    heads = num_attention_heads
    if heads is None:
        if hidden == full.hidden_size:
            heads = full.num_attention_heads
        elif hidden % head_size:
            below = hidden // head_size * head_size
            nearest = f"{below} or {below + head_size}" if below else f"{head_size}"
            raise PotstillError(
                f"hidden_size is {hidden}, which is not a multiple of {head_size}, the width of the teacher's "
                f"attention heads: take {nearest}{'' if copied else ', or give num_attention_heads'}"
            )
        else:
            heads = hidden // head_size
    elif hidden % heads:
        raise PotstillError(f"hidden_size is {hidden}, which is not a multiple of num_attention_heads, {heads}")
    elif copied and hidden // heads != head_size:
        raise PotstillError(
            f"num_attention_heads is {heads}, so heads would be {hidden // heads} wide in a hidden_size of {hidden}, "
            f"but the teacher's are {head_size} wide and are copied whole: give a hidden_size of {heads * head_size}, "
            "or start from random weights (initialise: random)"
        )
    if intermediate_size is None:
        intermediate_size = max(1, round(full.intermediate_size * hidden / full.hidden_size))
    return Sizes(hidden, heads, intermediate_size)
