"""Pooling: one vector for each text, from the last hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.errors import PotstillError

_KEY = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Mode → its key in a Pooling module's config, in the order in which sentence-transformers puts their vectors."""

MODES = tuple(_KEY)


@dataclass(frozen=True)
class Pooling:
    """One or more ways to pool, whose vectors are put side by side.

    ======================  =======================================================
    mode                    vector
    ======================  =======================================================
    `mean`                  mean over the tokens
    `cls`                   the first token
    `max`                   maximum over the tokens, of each dimension
    `lasttoken`             the last token
    `mean_sqrt_len_tokens`  sum over the tokens, divided by the root of their number
    `weightedmean`          mean over the tokens, the i-th with the weight i from 1
    ======================  =======================================================

    They are those of sentence-transformers (Reimers and Gurevych 2019; `weightedmean` and `lasttoken` for decoders are
    of Muennighoff 2022, SGPT). The special tokens of a text count as tokens.

    Attributes:
        modes: at least one.
    """

    modes: tuple[str, ...] = ("mean",)

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise PotstillError(f"the pooling {', '.join(unknown) or 'of no mode'} is unknown: use {', '.join(MODES)}")

    def width(self, hidden_size: int) -> int:
        """P, the width of the pooled vector of hidden states that are `hidden_size` wide."""
        return len(self.modes) * hidden_size

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool texts.

        Sums are made in float32 at least, and the result has the precision of `hidden`.

        Args:
            hidden: (B, L, H), the last hidden states.
            mask: (B, L), 1 or true at the tokens of a text and 0 at padding, on either side. Each text has a token.

        Returns:
            (B, P).
        """
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        pooled = [_POOL[mode](wide, mask.bool()) for mode in self.modes]
        return torch.cat(pooled, dim=-1).to(hidden.dtype)

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> Pooling:
        """The pooling that the config of a Pooling module asks for.

        Args:
            config: in the older form, with a key for each mode, or in the newer one, with one `pooling_mode`.
            where: whose it is, for messages: "the module 1_Pooling of the teacher 'x'".

        Raises:
            PotstillError: it asks for a mode that is unknown, or to leave the prompt out.
        """
        if config.get("include_prompt", True) is not True:
            raise PotstillError(
                f"{where} leaves the prompt out of the embedding (include_prompt is not true), which potstill does not "
                "do: use an encoder that pools all tokens"
            )
        if "pooling_mode" in config:
            asked = config["pooling_mode"]
            modes = list(asked) if isinstance(asked, list) else [asked]
        else:
            asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
            names = {key: mode for mode, key in _KEY.items()}
            modes = sorted((names.get(key, key) for key in asked), key=lambda mode: (*MODES, mode).index(mode))
            modes = modes or ["mean"]  # as sentence-transformers has it
        unknown = [mode for mode in modes if mode not in MODES]
        if unknown or not modes:
            raise PotstillError(
                f"{where} asks for a pooling of an unknown kind ({unknown[0] if unknown else 'none'}): use an encoder "
                f"whose pooling is one of {', '.join(MODES)}"
            )
        return cls(tuple(modes))

    def to_config(self, hidden_size: int) -> dict[str, Any]:
        """The config of a Pooling module, as far as possible in the form that every sentence-transformers reads."""
        config: dict[str, Any] = {"word_embedding_dimension": hidden_size}
        if list(self.modes) == [mode for mode in MODES if mode in self.modes]:
            config |= {key: mode in self.modes for mode, key in _KEY.items()}
        else:  # the older form knows one order alone
            config["pooling_mode"] = list(self.modes)
        return config | {"include_prompt": True}


def _cls(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.int().argmax(1))


def _lasttoken(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.shape[1] - 1 - mask.int().flip(1).argmax(1))


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask) / mask.sum(1, keepdim=True)


def _mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask) / mask.sum(1, keepdim=True).to(hidden.dtype).sqrt()


def _weightedmean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.cumsum(1) * mask
    return _weighted(hidden, weights) / weights.sum(1, keepdim=True)


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Return the sum (B, H) of hidden states (B, L, H) times weights (B, L)."""
    # Not a matrix product, which autocast would take to a lower precision.
    return (hidden * weights.to(hidden.dtype)[..., None]).sum(1)


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    """Return the hidden states (B, H) at one place (B,) of each text."""
    return hidden.gather(1, places[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


_POOL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weightedmean,
    "lasttoken": _lasttoken,
}
