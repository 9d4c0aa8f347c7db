"""Several teachers as one: the mean of what they say of a token, and of what a loss says of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import PotstillError
from potstill.objective.chunks import Projection, Targets, softmax
from potstill.objective.softmax import softmax_losses_

Mean = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Ensemble:
    """How several teachers become one distribution over the vocabulary.

    The mean of their probabilities is the ensemble of Hinton et al. 2015, section 3. The mean of their logits gives
    the geometric mean of their probabilities, normalised.

    Attributes:
        weights: one for each teacher; they add up to 1.
        mean: what the weighted mean is taken of.
    """

    weights: tuple[float, ...] = (1.0,)
    mean: Mean = "probabilities"

    @classmethod
    def of(cls, count: int, weights: Sequence[float] | None = None, mean: Mean = "probabilities") -> Ensemble:
        """Return the ensemble of so many teachers.

        Args:
            count: the number of teachers; no teacher counts as one.
            weights: one for each, of any sum; equal ones if not given.
            mean: see `Ensemble`.

        Raises:
            PotstillError: there are more or fewer weights than teachers, one is not above 0, or there is no such mean.
        """
        count = max(count, 1)
        if mean not in get_args(Mean):
            raise PotstillError(f"--teacher_mean is {mean!r}: it must be 'probabilities' or 'logits'.")
        given = [1.0] * count if weights is None else list(weights)
        if len(given) != count:
            raise PotstillError(
                f"--teacher_weights has {len(given)} number{'s' * (len(given) != 1)}, but there "
                f"{'is 1 teacher' if count == 1 else f'are {count} teachers'}: give one weight for each, in the order "
                "of --teacher."
            )
        for weight in given:
            if not 0 < weight < math.inf:
                raise PotstillError(f"--teacher_weights has {weight}: each weight must be above 0.")
        return cls(tuple(weight / sum(given) for weight in given), mean)

    def mean_value(self, values: Sequence[Tensor]) -> Tensor:
        """Return the weighted mean of scalars, one for each teacher; a single one is returned as it is."""
        if len(values) == 1:
            return values[0]
        weighted = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return torch.stack(weighted).sum()

    def log_probabilities(self, each: Sequence[Tensor]) -> Tensor:
        """Return the log-probabilities (..., V) of the ensemble.

        Args:
            each: (..., V) log-probabilities of each teacher; those of a single one are returned as they are.
        """
        if len(each) == 1:
            return each[0]
        pairs = zip(self.weights, each, strict=True)
        if self.mean == "logits":
            return F.log_softmax(torch.stack([weight * one for weight, one in pairs]).sum(0), dim=-1)
        return torch.logsumexp(torch.stack([math.log(weight) + one for weight, one in pairs]), 0)

    def targets(self, projections: Sequence[Projection], temperature: float) -> Targets:
        """Return what the soft targets are made of, for the pass over the vocabulary.

        Args:
            projections: what each teacher's logits are made of; the widths may differ.
            temperature: T; the mean of probabilities is that of softmax(logits / T).
        """
        if len(projections) == 1:
            return projections[0]
        if self.mean == "logits":
            return mean_of_logits(projections, self.weights)
        return MeanOfProbabilities(tuple(projections), self.weights, temperature, len(projections[0].weight))


def mean_of_logits(projections: Sequence[Projection], weights: Sequence[float]) -> Projection:
    """Return what the weighted mean of logits is made of: one matrix product, the teachers side by side in it.

    Args:
        projections: of (N, Hᵢ) hidden states, (V, Hᵢ) weights and (V,) biases or None.
        weights: one for each.

    Returns:
        A projection of (N, ΣHᵢ) hidden states.
    """
    pairs = list(zip(weights, projections, strict=True))
    biases = [weight * one.bias.to(_exact(one.bias)) for weight, one in pairs if one.bias is not None]
    return Projection(
        torch.cat([one.hidden for one in projections], dim=-1),
        torch.cat([weight * one.weight for weight, one in pairs], dim=-1),
        torch.stack(biases).sum(0) if biases else None,
    )


class MeanOfProbabilities(NamedTuple):
    """Logits whose softmax at temperature T is the weighted mean of the teachers' softmaxes at T: see `Targets`.

    Attributes:
        projections: what each teacher's logits are made of.
        weights: one for each; they add up to 1.
        temperature: T.
        vocab_size: V, without padding.
    """

    projections: tuple[Projection, ...]
    weights: tuple[float, ...]
    temperature: float
    vocab_size: int

    @property
    def matrices(self) -> int:
        """See `Targets.matrices`."""
        return len(self.projections)

    def prepared(self, dtype: torch.dtype, alignment: int) -> MeanOfProbabilities:
        """See `Targets.prepared`."""
        return self._replace(projections=tuple(one.prepared(dtype, alignment) for one in self.projections))

    def logits(self, chunk: slice) -> Tensor:
        """See `Targets.logits`."""
        hidden, weight, _ = self.projections[0]
        logits = hidden.new_empty((len(self.projections), len(hidden[chunk]), len(weight)))
        for (hidden, weight, bias), found in zip(self.projections, logits, strict=True):
            if bias is None:
                torch.mm(hidden[chunk], weight.T, out=found)
            else:
                torch.addmm(bias, hidden[chunk], weight.T, out=found)
        mix = mean_of_probabilities_
        if softmax(logits.device.type) is not softmax_losses_:
            from potstill.objective.triton_mean import triton_mean_of_probabilities_ as mix
        mix(logits, self.weights, self.temperature, self.vocab_size)
        return logits[0]


def mean_of_probabilities_(logits: Tensor, weights: Sequence[float], temperature: float, vocab_size: int) -> None:
    """Write T · log Σ wᵢ softmax(logitsᵢ / T), plus a number for each row, over the logits of the first teacher.

    What is added does not change the softmax. It brings the largest logit of a row near 0, where a type of 16 bits
    has its finest steps: without it the likeliest tokens would lose most where a distribution is flat.

    Args:
        logits: (teachers, n, V') at temperature 1, V' ≥ V.
        weights: one for each teacher; they add up to 1.
        temperature: T.
        vocab_size: V; columns from there on are padding, which gets no probability and is left as it is.
    """
    mean: Tensor | None = None
    for weight, one in zip(weights, logits[..., :vocab_size], strict=True):
        found = F.log_softmax(one.to(_exact(one)) / temperature, dim=-1).add_(math.log(weight))
        mean = found if mean is None else torch.logaddexp(mean, found, out=mean)
    assert mean is not None
    mean.sub_(mean.amax(-1, keepdim=True)).mul_(temperature)
    logits[0, :, :vocab_size].copy_(mean)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
