"""DistilBERT's objective (Sanh et al. 2019, section 2): soft targets, masked LM, hidden-state cosine."""

from __future__ import annotations

import inspect
from typing import Literal, get_args

from potstill.errors import PotstillError
from potstill.objective.hidden_cosine import HiddenCosine
from potstill.objective.objective import Objective
from potstill.objective.parts import CausalLM, MaskedLM, SoftTargets
from potstill.objective.term import SAMPLED_SHARE

LossTokens = Literal["all", "masked", "sampled"]


class DistillationObjective(Objective):
    """L = alpha_ce · L_ce + alpha_mlm · L_mlm + alpha_cos · L_cos, where the weights are not normalised.

    - L_ce: `SoftTargets`, KL(teacher ‖ student) at ``temperature``.
    - L_mlm: `MaskedLM`, or `CausalLM` for a causal model such as GPT-2.
    - L_cos: `HiddenCosine`.

    Args:
        alpha_ce: weight of the soft targets (5.0 in the released DistilBERT).
        alpha_mlm: weight of masked LM (2.0).
        alpha_cos: weight of the hidden-state cosine (1.0).
        temperature: T of the soft targets (2.0).
        soft_targets: tokens that L_ce is computed at: ``all`` tokens of a block, [CLS] and [SEP] included, only the
            ``masked`` ones, or the masked ones and a random sample of the others (``sampled``): see `SoftTargets`.
        hidden_cosine: tokens that L_cos is computed at, likewise.
        soft_targets_share: with ``sampled``, the share of the tokens that are not masked to sample.
        causal: whether the student is a causal model.

    Raises:
        PotstillError: a negative weight, all weights 0, or a temperature that is not positive.
    """

    def __init__(
        self,
        alpha_ce: float = 5.0,
        alpha_mlm: float = 2.0,
        alpha_cos: float = 1.0,
        temperature: float = 2.0,
        soft_targets: LossTokens = "all",
        soft_targets_share: float = SAMPLED_SHARE,
        hidden_cosine: LossTokens = "all",
        causal: bool = False,
    ) -> None:
        weights = {"alpha_ce": alpha_ce, "alpha_mlm": alpha_mlm, "alpha_cos": alpha_cos}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise PotstillError(f"--{name} is {weight}: a loss weight must be 0 or more.")
        if not any(weights.values()):
            raise PotstillError("--alpha_ce, --alpha_mlm and --alpha_cos are all 0: there is nothing to learn from.")
        if not 0 < temperature < float("inf"):
            raise PotstillError(f"--temperature is {temperature}: it must be above 0 (DistilBERT uses 2).")
        for name, tokens in {"soft_targets": soft_targets, "hidden_cosine": hidden_cosine}.items():
            if tokens not in get_args(LossTokens):
                raise PotstillError(f"--{name} is {tokens!r}: it must be 'all', 'masked' or 'sampled'.")
        if not 0 < soft_targets_share < 1:
            raise PotstillError(f"--soft_targets_share is {soft_targets_share}: it must lie between 0 and 1.")
        shares = [soft_targets_share if tokens == "sampled" else None for tokens in (soft_targets, hidden_cosine)]
        super().__init__(
            [
                SoftTargets(weight=alpha_ce, temperature=temperature, tokens=soft_targets, share=shares[0]),
                CausalLM(weight=alpha_mlm) if causal else MaskedLM(weight=alpha_mlm),
                HiddenCosine(weight=alpha_cos, tokens=hidden_cosine, share=shares[1]),
            ]
        )


OF_DISTILBERT = tuple(name for name in inspect.signature(DistillationObjective).parameters if name != "causal")
"""The options of a recipe that describe this objective. `losses` describes any other."""
