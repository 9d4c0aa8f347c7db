"""Averages over several teachers: of their distributions over the vocabulary, and of the values of a loss."""

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
from potstill.wording import counted

Mean = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Ensemble:
    """How the distributions of several teachers over the vocabulary are averaged.

    The mean of probabilities is the ensemble of Hinton et al. 2015, section 3. The mean of logits gives the normalised
    geometric mean of the probabilities.

    Attributes:
        weights: one for each teacher; they add up to 1.
        mean: whether probabilities or logits are averaged.
    """

    weights: tuple[float, ...] = (1.0,)
    mean: Mean = "probabilities"

    @classmethod
    def of(cls, count: int, weights: Sequence[float] | None = None, mean: Mean = "probabilities") -> Ensemble:
        """Return the ensemble for a number of teachers.

        Args:
            count: number of teachers; 0 counts as 1.
            weights: one for each teacher, with any sum; equal weights if not given.
            mean: see `Ensemble`.

        Raises:
            PotstillError: the number of weights is not the number of teachers, a weight is not above 0, or `mean` is
                unknown.
        """
        count = max(count, 1)
        if mean not in get_args(Mean):
            raise PotstillError(f"--teacher_mean is {mean!r}: it must be 'probabilities' or 'logits'.")
        given = [1.0] * count if weights is None else list(weights)
        if len(given) != count:
            raise PotstillError(
                f"--teacher_weights has {counted(len(given), 'number')}, but there "
                f"{'is 1 teacher' if count == 1 else f'are {count} teachers'}: give one weight for each, in the order "
                "of --teacher."
            )
        for weight in given:
            if not 0 < weight < math.inf:
                raise PotstillError(f"--teacher_weights has {weight}: each weight must be above 0.")
        return cls(tuple(weight / sum(given) for weight in given), mean)

    def mean_value(self, values: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
        """Return the weighted mean of scalars. A single one is returned unchanged.

        Args:
            values: a scalar for each teacher that takes part.
            numbers: the numbers of these teachers, counted from 0.
        """
        if len(values) == 1:
            return values[0]
        total = sum(self.weights[number] for number in numbers)
        weighted = [self.weights[number] / total * value for number, value in zip(numbers, values, strict=True)]
        return torch.stack(weighted).sum()

    def log_probabilities(self, each: Sequence[Tensor]) -> Tensor:
        """Return the log-probabilities (..., V) of the ensemble.

        Args:
            each: (..., V) log-probabilities of each teacher. Those of a single teacher are returned unchanged.
        """
        if len(each) == 1:
            return each[0]
        pairs = zip(self.weights, each, strict=True)
        if self.mean == "logits":
            return F.log_softmax(torch.stack([weight * one for weight, one in pairs]).sum(0), dim=-1)
        return torch.logsumexp(torch.stack([math.log(weight) + one for weight, one in pairs]), 0)

    def targets(self, projections: Sequence[Projection], temperature: float) -> Targets:
        """Return the source of the averaged logits, for the pass over the vocabulary.

        Args:
            projections: projection of each teacher; the widths may differ.
            temperature: T; probabilities are softmax(logits / T).
        """
        if len(projections) == 1:
            return projections[0]
        if self.mean == "logits":
            return mean_of_logits(projections, self.weights)
        return MeanOfProbabilities(tuple(projections), self.weights, temperature, len(projections[0].weight))


def mean_of_logits(projections: Sequence[Projection], weights: Sequence[float]) -> Projection:
    """Return a projection that gives the weighted mean of logits in one matrix product over all teachers.

    Args:
        projections: (N, Hᵢ) hidden states, (V, Hᵢ) weight and (V,) bias or None of each teacher.
        weights: one for each teacher.

    Returns:
        A projection of (N, ΣHᵢ) hidden states.
    """
    pairs = list(zip(weights, projections, strict=True))
    biases = [weight * one.bias.to(_sum_dtype(one.bias)) for weight, one in pairs if one.bias is not None]
    return Projection(
        torch.cat([one.hidden for one in projections], dim=-1),
        torch.cat([weight * one.weight for weight, one in pairs], dim=-1),
        torch.stack(biases).sum(0) if biases else None,
    )


class MeanOfProbabilities(NamedTuple):
    """Logits whose softmax at temperature T is the weighted mean of the teachers' softmaxes at T: see `Targets`.

    Attributes:
        projections: projection of each teacher.
        weights: one for each teacher; they add up to 1.
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
        for (hidden, weight, bias), of_teacher in zip(self.projections, logits, strict=True):
            if bias is None:
                torch.mm(hidden[chunk], weight.T, out=of_teacher)
            else:
                torch.addmm(bias, hidden[chunk], weight.T, out=of_teacher)
        mix = mean_of_probabilities_
        if softmax(logits.device.type) is not softmax_losses_:
            from potstill.objective.triton_mean import triton_mean_of_probabilities_ as mix
        mix(logits, self.weights, self.temperature, self.vocab_size)
        return logits[0]


def mean_of_probabilities_(logits: Tensor, weights: Sequence[float], temperature: float, vocab_size: int) -> None:
    """Replace the logits of the first teacher by T · log Σ wᵢ softmax(logitsᵢ / T), plus a constant for each row.

    The constant does not change the softmax. It brings the largest logit of a row near 0, where a 16-bit type is most
    precise. Without it, the logits of the likeliest tokens would be rounded most when a distribution is flat.

    Args:
        logits: (teachers, n, V') at temperature 1, V' ≥ V.
        weights: one for each teacher; they add up to 1.
        temperature: T.
        vocab_size: V; later columns are padding. Padding gets no probability and is left unchanged.
    """
    mean: Tensor | None = None
    for weight, one in zip(weights, logits[..., :vocab_size], strict=True):
        weighted = F.log_softmax(one.to(_sum_dtype(one)) / temperature, dim=-1).add_(math.log(weight))
        mean = weighted if mean is None else torch.logaddexp(mean, weighted, out=mean)
    assert mean is not None
    mean.sub_(mean.amax(-1, keepdim=True)).mul_(temperature)
    logits[0, :, :vocab_size].copy_(mean)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
