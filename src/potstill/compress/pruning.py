"""The greedy removal: estimate the importance, remove what matters least, measure what is left, and so on."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.compress.cut import cut
from potstill.compress.importance import Importance, importance
from potstill.compress.kept import Kept, kept_of, number_to_remove, removed_by
from potstill.compress.latency import milliseconds
from potstill.compress.masks import masked
from potstill.compress.prune_arguments import PruneArguments
from potstill.compress.subject import Subject
from potstill.errors import PotstillError
from potstill.finetuning.step import run
from potstill.live_line import duration, say
from potstill.student.parts import Located
from potstill.wording import counted

AGREEMENT = 1e-3
"""Largest difference between the logits of the cut model and of the masked one, as a share of the largest logit. In
float32 they differ by about 1e-6 of it."""


@dataclass(frozen=True)
class Point:
    """What is left after a step, and what it is worth.

    Attributes:
        heads: number of heads that are removed.
        heads_share: share of the heads, 0 to 1.
        neurons: number of neurons that are removed.
        neurons_share: share of the neurons.
        score: the score of the task, in percent.
        metrics: the metrics of the task.
        parameters: of the model with its head.
        layer_parameters: of the layers alone.
        milliseconds: median latency of a text; None if it was not measured.
        whole_milliseconds: that of the whole model, measured in turns with this one.
    """

    heads: int
    heads_share: float
    neurons: int
    neurons_share: float
    score: float
    metrics: dict[str, Any]
    parameters: int
    layer_parameters: int
    milliseconds: float | None
    whole_milliseconds: float | None

    @property
    def speed(self) -> float | None:
        """How many times as fast as the whole model it is."""
        if self.milliseconds is None or self.whole_milliseconds is None:
            return None
        return self.whole_milliseconds / self.milliseconds


@dataclass(frozen=True)
class Step:
    """A finished step: what is kept after it."""

    heads: Kept
    neurons: Kept
    point: Point

    @property
    def record(self) -> dict[str, Any]:
        """The step as JSON."""
        kept = {
            name: [numbers.tolist() for numbers in of.numbers]
            for name, of in (("heads", self.heads), ("neurons", self.neurons))
        }
        return {"kept": kept, "point": asdict(self.point)}

    @classmethod
    def from_record(cls, record: dict[str, Any], located: Located) -> Step:
        """Read a step from JSON."""
        kept = record["kept"]
        return cls(
            Kept.from_numbers(kept["heads"], located.heads),
            Kept.from_numbers(kept["neurons"], located.neurons),
            Point(**record["point"]),
        )


class Pruning:
    """Prunes a model step by step.

    Args:
        subject: the model and its task.
        located: where its heads and neurons lie.
        args: what to remove.

    Raises:
        PotstillError: there are not so many heads or neurons, or no class can hold what would be left.
    """

    def __init__(self, subject: Subject, located: Located, args: PruneArguments) -> None:
        self.subject, self.located, self.args = subject, located, args
        self.whole = subject.model
        self.layers = len(located.layers)
        self.counts = {
            "heads": 0
            if args.heads is None
            else number_to_remove(args.heads, located.heads, "heads", args.uniform_heads),
            "neurons": 0
            if args.neurons is None
            else number_to_remove(args.neurons, located.neurons, "neurons", args.uniform_neurons),
        }
        self._rehearse()
        self.requests = subject.requests(args.timed_rows) if args.timed_rows else []

    def first(self) -> Step:
        """Return the step before the first one: nothing is removed."""
        heads, neurons = kept_of(self.located)
        return Step(heads, neurons, self._point(heads, neurons, self.whole))

    def next(self, step: Step, number: int) -> tuple[Step, PreTrainedModel]:
        """Return the step with a number, from 1, after the one before it, and the model that is left.

        Raises:
            PotstillError: what is left does not compute what the masked model computes.
        """
        heads, neurons = self.removal(step, number)
        model = cut(self.located, heads, neurons)
        self._check_same(model, heads, neurons)
        return Step(heads, neurons, self._point(heads, neurons, model)), model

    def removal(self, step: Step, number: int) -> tuple[Kept, Kept]:
        """Return the heads and the neurons that are kept after the step with a number."""
        args, asked = self.args, self.counts
        found = importance(
            self.located,
            step.heads if asked["heads"] else None,
            step.neurons if asked["neurons"] else None,
            self.subject.batches(),
            self.subject.loss,
        )
        self._check_finite(found)
        heads, neurons = step.heads, step.neurons
        if found.heads is not None:
            goal = removed_by(number, args.steps, asked["heads"], self.layers, args.uniform_heads)
            heads = heads.without(found.heads, goal - heads.removed, args.uniform_heads, args.normalise)
        if found.neurons is not None:
            goal = removed_by(number, args.steps, asked["neurons"], self.layers, args.uniform_neurons)
            neurons = neurons.without(found.neurons, goal - neurons.removed, args.uniform_neurons, args.normalise)
        return heads, neurons

    def _rehearse(self) -> None:
        """Cut any heads and neurons, so that a model that no class can hold is told before the work."""
        heads, neurons = kept_of(self.located)
        args = self.args
        ranks = [torch.arange(len(mask), 0, -1).double() for mask in heads.of_layers]
        heads = heads.without(ranks, self.counts["heads"], args.uniform_heads, normalise=False)
        ranks = [torch.arange(len(mask), 0, -1).double() for mask in neurons.of_layers]
        neurons = neurons.without(ranks, self.counts["neurons"], args.uniform_neurons, normalise=False)
        self._check_same(cut(self.located, heads, neurons), heads, neurons)

    def _point(self, heads: Kept, neurons: Kept, model: PreTrainedModel) -> Point:
        score, metrics, _ = self.subject.score(model)
        times: list[float | None] = [None, None]
        if self.requests:
            times = [*milliseconds([model, self.whole], self.requests)]
        in_layers = sum(
            parameter.numel() for name, parameter in model.named_parameters() if name.startswith(self.located.prefix)
        )
        return Point(
            heads=heads.removed,
            heads_share=heads.share_removed,
            neurons=neurons.removed,
            neurons_share=neurons.share_removed,
            score=score,
            metrics=metrics,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layer_parameters=in_layers,
            milliseconds=times[0],
            whole_milliseconds=times[1],
        )

    @torch.inference_mode()
    def _check_same(self, model: PreTrainedModel, heads: Kept, neurons: Kept) -> None:
        _, batch = next(self.subject.batches())
        device = self.whole.device
        widths = self.located.widths
        with masked(
            self.located,
            [mask.to(device) for mask in heads.of_layers] if widths.heads_in else None,
            [mask.to(device) for mask in neurons.of_layers] if widths.neurons_in else None,
        ):
            expected = _logits(run(self.whole, batch))
        found = _logits(run(model, batch))
        wrong = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not wrong <= AGREEMENT:
            raise PotstillError(
                f"The model without these heads and neurons does not compute what it should (its logits differ by "
                f"{float(wrong):.2%}): its architecture, {model.config.model_type!r}, cannot be pruned by this version "
                "of potstill."
            )

    def _check_finite(self, found: Importance) -> None:
        for scores in (found.heads, found.neurons):
            if scores is not None and not all(torch.isfinite(of_layer).all() for of_layer in scores):
                raise PotstillError(
                    "The gradients of the loss are not finite numbers, so nothing tells which heads matter: look for a "
                    "damaged model or for rows that it cannot read."
                )


def _logits(outputs: Any) -> Tensor:
    names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
    return torch.cat([outputs[name].flatten() for name in names])


def progress(number: int, steps: int, point: Point, started: float, done: int) -> None:
    """Print a line on a finished step to standard error.

    Args:
        number: of the step.
        steps: number of all steps.
        point: what is left.
        started: when the first step of this session began, by the monotonic clock.
        done: steps of this session.
    """
    left = (time.monotonic() - started) / max(done, 1) * (steps - number)
    parts = [f"step {number}/{steps}"]
    if point.heads:
        parts.append(f"{counted(point.heads, 'head')} removed ({point.heads_share:.0%})")
    if point.neurons:
        parts.append(f"{counted(point.neurons, 'neuron')} removed ({point.neurons_share:.0%})")
    parts.append(f"score {point.score:.1f}")
    if point.speed is not None:
        parts.append(f"{point.milliseconds:.2f} ms a text ({point.speed:.2f} × as fast)")
    parts.append(f"{duration(left)} left")
    say(" · ".join(parts))
