"""Training in fixed-point numbers (Gupta et al. 2015): weights, activations and gradients of few bits.

Weights lie on the grid of their format after every step of the optimiser; there is no copy in float32. What each
module with parameters returns is rounded, and so are the gradients with respect to it and to the weights. Products are
summed in float32, where the paper has wide accumulators. The optimiser's own state, the losses, softmax, and the
projection onto the vocabulary of a language model are in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from potstill.errors import PotstillError
from potstill.precision.fixed_point import FixedPoint, FixedPointFormats, rounded

MOST_SATURATED = 0.001
"""Share of the weights that may be out of range at the start. The scale of a LayerNorm, 1, is a step above Q1.15."""

KINDS = ("weights", "activations", "gradients")
SATURATED = "saturated_"
"""Before the names of the shares in the log."""

_SEEDS = 2**31 - 1


class FixedPointTraining(TrainerCallback):
    """Rounds a model's weights, activations and gradients, and counts the values out of range.

    Args:
        model: the model in training; hooks are added to it.
        formats: of its numbers.
        seed: seed of the rounding of weights and of their gradients. It is the same on all processes, and depends on
            the step, so all processes keep the same weights and a resumed run rounds as an uninterrupted one.

    Raises:
        PotstillError: the format of the weights does not hold the model's weights.
    """

    def __init__(self, model: nn.Module, formats: FixedPointFormats, seed: int) -> None:
        self.model, self.formats, self.seed = model, formats, seed
        self._counts: dict[str, Tensor] = {}
        self._values = dict.fromkeys(KINDS, 0)
        self._totals: dict[str, list[float]] = {}
        if formats.weights is not None:
            _check_weights(model, formats.weights)
        if formats.activations is not None or formats.gradients is not None:
            for module in model.modules():
                if not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False)):
                    module.register_forward_hook(self._round_output)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Bring the weights to the grid. Those of a checkpoint lie there already."""
        self._round_weights("nearest", 0)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Round the gradients of the weights."""
        if self.formats.gradients is None:
            return
        for place, parameter in enumerate(self.model.parameters()):
            if parameter.grad is not None:
                seed = self._seed_of(state.global_step, 2 * place)
                parameter.grad.copy_(self._rounded("gradients", parameter.grad, self.formats.gradients, seed))

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Round the new weights."""
        self._round_weights(self.formats.rounding, state.global_step)

    def shares(self) -> dict[str, float]:
        """Return the share of values out of range since the last call, by name in the log."""
        found = {}
        for kind, count in self._counts.items():
            total = self._totals.setdefault(kind, [0.0, 0.0])
            saturated, values = float(count), float(self._values[kind])
            total[0] += saturated
            total[1] += values
            found[f"{SATURATED}{kind}"] = saturated / max(values, 1.0)
        self._counts, self._values = {}, dict.fromkeys(KINDS, 0)
        return found

    @property
    def record(self) -> dict[str, Any]:
        """The formats, and the share of values out of range in this session, for the results of the run."""
        self.shares()
        return self.formats.record | {
            "saturated": {kind: saturated / max(values, 1.0) for kind, (saturated, values) in self._totals.items()}
        }

    def _round_weights(self, rounding: Any, step: int) -> None:
        if self.formats.weights is None:
            return
        with torch.no_grad():
            for place, parameter in enumerate(self.model.parameters()):
                seed = self._seed_of(step, 2 * place + 1)
                parameter.copy_(self._rounded("weights", parameter, self.formats.weights, seed, rounding))

    def _rounded(
        self, kind: str, x: Tensor, numbers: FixedPoint, seed: int | None = None, rounding: Any = None
    ) -> Tensor:
        if seed is None:  # of torch's own generator, whose state checkpoints keep
            seed = int(torch.randint(_SEEDS, ()))
        held, saturated = rounded(x, numbers, rounding or self.formats.rounding, seed)
        self._counts[kind] = self._counts[kind] + saturated if kind in self._counts else saturated
        self._values[kind] += x.numel()
        return held

    def _seed_of(self, step: int, place: int) -> int:
        # Products with large primes, so that neighbours get seeds far apart.
        return (self.seed * 2_654_435_761 + step * 1_000_003 + place * 7_919) % _SEEDS

    def _round_output(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        if not torch.is_grad_enabled():  # an evaluation gives the same figures again
            numbers = self.formats.activations
            return output if numbers is None else rounded(output, numbers, "nearest")[0]
        return _RoundBoth.apply(output, self)


class _RoundBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, training: FixedPointTraining) -> Tensor:
        ctx.training = training
        numbers = training.formats.activations
        return x.clone() if numbers is None else training._rounded("activations", x, numbers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        numbers = ctx.training.formats.gradients
        return (gradient if numbers is None else ctx.training._rounded("gradients", gradient, numbers)), None


def _check_weights(model: nn.Module, numbers: FixedPoint) -> None:
    """Check that a format holds the weights of a model, but for `MOST_SATURATED` of them."""
    saturated, values, largest = 0, 0, 0.0
    for parameter in model.parameters():
        saturated += int(rounded(parameter, numbers, "nearest")[1])
        values += parameter.numel()
        largest = max(largest, float(parameter.detach().abs().max())) if parameter.numel() else largest
    if saturated > MOST_SATURATED * values:
        raise PotstillError(
            f"--fixed_point: {numbers} holds weights up to {numbers.highest:g}, but {saturated / values:.2%} of the "
            f"model's weights are larger (the largest is {largest:.3g}): give it more bits before the point."
        )
