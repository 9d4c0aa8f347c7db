"""What is read of a model on the way to its logits: hidden states, and the inputs of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Tokens = Literal["none", "masked", "sampled", "all"]
_SHARES: tuple[Tokens, ...] = ("none", "masked", "sampled", "all")


@dataclass(frozen=True)
class Reads:
    """What is read of one model. Nothing else is kept in memory, and no layer above it is run.

    Layers are counted from 0, or from the end with -1 for the last one.

    Attributes:
        logits: the tokens whose logits are read: none, the masked ones, those and a random sample of the others, or
            all. They need the last hidden states too.
        hidden: layers whose output is read. That of the last layer is what the head reads, so it comes after the
            final LayerNorm in a model that has one.
        attention: layers whose queries, keys and values are read.
        pooled: whether the embeddings of whole texts are read, which are pooled from the last hidden states.
        last: the tokens whose last hidden states are read: at least those whose logits are read. They are all tokens if
            -1 is given in `hidden`.
    """

    logits: Tokens = "none"
    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    pooled: bool = False
    last: Tokens = "none"

    def __post_init__(self) -> None:
        every = self.pooled or -1 in self.hidden
        last = "all" if every else _more(self.last, self.logits)
        object.__setattr__(self, "last", last)
        object.__setattr__(self, "hidden", frozenset(self.hidden) | (frozenset() if last == "none" else {-1}))
        object.__setattr__(self, "attention", frozenset(self.attention))

    def __or__(self, other: Reads) -> Reads:
        """Return what is read by either."""
        return Reads(
            _more(self.logits, other.logits),
            (self.hidden | other.hidden) - {-1},  # `last` says of which tokens
            self.attention | other.attention,
            self.pooled or other.pooled,
            _more(self.last, other.last),
        )

    def __bool__(self) -> bool:
        """Return whether anything is read."""
        return bool(self.hidden or self.attention)

    def layers_run(self, depth: int) -> int:
        """Return how many of a model's layers have to run: up to the last one whose output something reads."""
        outputs = [layer % depth + 1 for layer in self.hidden]
        inputs = [layer % depth for layer in self.attention]
        return max(outputs + inputs, default=0)

    def last_at(self, positions: Tensor, sampled: Tensor | None) -> Tensor | None:
        """Return the positions (B, R) of the tokens whose last hidden states are read; None if all are read, or none.

        Args:
            positions: (B, K), of the masked tokens. They come first in the result.
            sampled: (B, S), of the sampled tokens; None if there are none.
        """
        if self.last == "masked":
            return positions
        if self.last == "sampled":
            assert sampled is not None
            return torch.cat([positions, sampled], 1)
        return None


def _more(one: Tokens, other: Tokens) -> Tokens:
    return max(one, other, key=_SHARES.index)


LAST_HIDDEN = Reads(hidden=frozenset({-1}))


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention of one layer compares and mixes.

    Attributes:
        query: (B, L, D), the heads side by side.
        key: (B, L, D).
        value: (B, L, D).
        heads: the number of attention heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int


@dataclass(frozen=True)
class States:
    """What a model makes of B blocks of L tokens, as far as it was asked for.

    Attributes:
        hidden: the output of each layer in `Reads.hidden`, (B, L, H), under the number that was asked for. Of the last
            layer it may have the tokens in `Reads.last` alone.
        attention: the queries, keys and values of each layer in `Reads.attention`, likewise.
    """

    hidden: dict[int, Tensor]
    attention: dict[int, AttentionInputs]

    @property
    def last(self) -> Tensor:
        """The last hidden states (B, L, H)."""
        return self.hidden[-1]


def run_layers(
    layers: Sequence[nn.Module],
    hidden: Tensor,
    keep: Reads,
    attention_inputs: Callable[[nn.Module, Tensor], AttentionInputs],
    run: Callable[[nn.Module, Tensor], Tensor] = lambda layer, hidden: layer(hidden),
    final: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    run_last: Callable[[Tensor], Tensor] | None = None,
) -> States:
    """Run a stack of layers one by one, as far as it is read, and keep what is read.

    Queries, keys and values are computed once more from the layer's input: a layer does not hand them out, and a hook
    would be lost where layers are compiled, recorded or run again in the backward pass.

    Args:
        layers: each turns (B, L, H) into (B, L, H).
        hidden: (B, L, H), what the first layer reads.
        keep: what is read.
        attention_inputs: computes them from a layer and its input.
        run: calls a layer with its input, for layers that take more than that.
        final: what a model does to the output of its last layer before the head reads it, a LayerNorm for example.
        run_last: runs the last layer in place of `run`. It may return fewer tokens, (B, R, H).
    """
    depth = len(layers)
    states = States({}, {})
    last = keep.layers_run(depth)
    for number, layer in enumerate(layers):
        asked = [key for key in (number, number - depth) if key in keep.attention]
        if asked:
            states.attention.update(dict.fromkeys(asked, attention_inputs(layer, hidden)))
        if number == last:
            break
        is_last = number == depth - 1
        hidden = run_last(hidden) if is_last and run_last is not None else run(layer, hidden)
        if is_last:
            hidden = final(hidden)
        states.hidden.update({key: hidden for key in (number, number - depth) if key in keep.hidden})
    return states
