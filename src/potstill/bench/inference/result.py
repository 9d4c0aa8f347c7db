"""The figures of each form."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.bench.inference.energy import Energy
from potstill.bench.inference.limits import Bound
from potstill.bench.inference.turns import Ratio


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single requests, from the model's inputs to its logits. Tokenising is not included.

    Attributes:
        median: over all requests and passes; so are the other statistics.
        seconds_of_a_pass: time of all requests, one after the other; mean over passes. The paper's Table 3 has it.
        milliseconds: of each request, in the order of the requests, pass after pass.
    """

    median: float
    p25: float
    p75: float
    p90: float
    p99: float
    mean: float
    seconds_of_a_pass: float
    milliseconds: list[float]

    @classmethod
    def of(cls, seconds: Sequence[float], passes: int) -> Latency:
        """Summarise the seconds of requests."""
        ms = 1000 * np.asarray(seconds)
        p25, median, p75, p90, p99 = (float(value) for value in np.percentile(ms, (25, 50, 75, 90, 99)))
        rounded = [round(value, 6) for value in ms.tolist()]
        return cls(median, p25, p75, p90, p99, float(ms.mean()), sum(seconds) / passes, rounded)


@dataclass(frozen=True)
class Lengths:
    """Lengths of requests, in tokens, or for ELMo's shape in words.

    Attributes:
        median: over all requests; so are the other statistics.
    """

    shortest: int
    p5: float
    median: float
    p95: float
    longest: int
    mean: float

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Summarise lengths."""
        p5, median, p95 = (float(value) for value in np.percentile(lengths, (5, 50, 95)))
        return cls(min(lengths), p5, median, p95, max(lengths), statistics.fmean(lengths))

    def __str__(self) -> str:
        return (
            f"median {self.median:g}, mean {self.mean:.1f}, shortest {self.shortest}, 5 % at most {self.p5:g}, "
            f"95 % at most {self.p95:g}, longest {self.longest}"
        )


@dataclass(frozen=True)
class Throughput:
    """Requests per second at a batch size.

    Attributes:
        batch_size: requests at a time.
        per_second: over all batches; None if the form cannot run such batches.
        ratio: to the first form, batch by batch; None for the first form.
        padding: share of the tokens that are padding. Requests are batched in the order of the data.
        why_not: message of the runtime if there is no figure.
    """

    batch_size: int
    per_second: float | None
    ratio: Ratio | None = None
    padding: float = 0.0
    why_not: str | None = None


@dataclass(frozen=True)
class Row:
    """A model in a form.

    Attributes:
        model: its name.
        form: title of the form.
        path: its folder or hub name, as given; empty for ELMo's shape.
        task: the name that `pipeline` has for it.
        new_head: whether its head is a new one with random weights.
        parameters: number of all parameters.
        encoder_parameters: number of parameters without the head.
        bytes_on_disk: size of its weights; None for ELMo's shape, which has no file.
        peak_memory_bytes: largest resident size of its process, while it loads the model and runs all single requests.
            Libraries are included.
        model_memory_bytes: `peak_memory_bytes` minus the size with imported libraries but no model.
        flops: of a request's matrix products, mean over requests.
        flops_by_length: length → FLOPs.
        lengths: of the requests, in this model's tokens.
        latency: of single requests.
        ratio: to the first form; None for the first form.
        throughput: for each batch size.
        tokenisation: median milliseconds to tokenise a text; None if there are no texts.
        bound: the least time of a request.
        energy: None if not asked for.
    """

    model: str
    form: str
    path: str
    task: str
    new_head: bool
    parameters: int
    encoder_parameters: int
    bytes_on_disk: int | None
    peak_memory_bytes: int
    model_memory_bytes: int
    flops: float
    flops_by_length: dict[int, int]
    lengths: Lengths
    latency: Latency
    ratio: Ratio | None
    throughput: list[Throughput]
    tokenisation: float | None
    bound: Bound
    energy: Energy | None = None
