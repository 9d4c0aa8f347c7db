"""The losses that read logits. A recipe names each of them; the term `Vocabulary` computes them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from potstill.objective.softmax import Divergence
from potstill.objective.term import AtTokens, Weighted
from potstill.student import Tokens

TOKENS = ("all", "masked")


@dataclass(frozen=True, kw_only=True)
class SoftTargets(AtTokens):
    """The divergence of the softmaxes of teacher and student at temperature T, times T² (Hinton et al. 2015).

    It is summed over the vocabulary and averaged over the tokens. Due to the factor T² the size of the gradient hardly
    depends on T.

    Attributes:
        temperature: T.
        divergence: forward_kl is KL(teacher ‖ student), reverse_kl is KL(student ‖ teacher), and jensen_shannon is the
            mean of the KLs from each of them to their mean, at most ln 2.
    """

    name: ClassVar[str] = "soft_targets"
    temperature: float = 2.0
    divergence: Divergence = "forward_kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("temperature", lambda value: 0 < value < float("inf"), "a number above 0")
        self._choice("divergence", get_args(Divergence))


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Weighted):
    """Cross-entropy of the original tokens at the masked positions, at temperature 1."""

    name: ClassVar[str] = "masked_lm"
    logged_as: ClassVar[str] = "mlm"


@dataclass(frozen=True, kw_only=True)
class CausalLM(MaskedLM):
    """Cross-entropy of the next token at every position but the last, at temperature 1."""

    name: ClassVar[str] = "causal_lm"
    logged_as: ClassVar[str] = "clm"


@dataclass(frozen=True, kw_only=True)
class LogitsMSE(Weighted):
    """Mean squared error of the logits, over the vocabulary and the tokens (arXiv 1312.6184).

    Attributes:
        tokens: all tokens of a block, [CLS] and [SEP] included, or the masked ones.
    """

    name: ClassVar[str] = "logits_mse"
    tokens: Tokens = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choice("tokens", TOKENS)
