"""What is measured of each form, as figures."""

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
    """Milliseconds of single requests, from what the model reads to what it says; tokenising is not in it.

    Attributes:
        median: of all requests and passes, as are the others.
        seconds_of_a_pass: over all requests, one after the other: the figure of the paper's Table 3; mean over passes.
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
    """How long requests are, in tokens, or for ELMo's shape in words.

    Attributes:
        median: of all requests, as are the others.
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
    """How many requests a second there are of so many at a time.

    Attributes:
        batch_size: requests at a time.
        per_second: over all batches; None where the form cannot take so many.
        ratio: to the first form, batch by batch; None for that form itself.
        padding: share of what is computed that is padding, requests being taken as they come.
        why_not: what the runtime says where there is no figure.
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
        form: how it is run, in words.
        path: its folder or hub name, as given; empty for ELMo's shape.
        task: as `pipeline` calls it.
        new_head: whether its head is not its own but a new one, of random weights.
        parameters: in all.
        encoder_parameters: without the head.
        bytes_on_disk: of its weights; None for ELMo's shape, which lies on none.
        peak_memory_bytes: largest resident size of its process over loading it and all single requests, libraries
            included.
        model_memory_bytes: the same less what the process took with libraries imported and no model.
        flops: of a request's matrix products, mean over requests.
        flops_by_length: length → FLOPs.
        lengths: of the requests as this model reads them.
        latency: of single requests.
        ratio: to the first form; None for that form itself.
        throughput: by batch size.
        tokenisation: median milliseconds of turning a text into what the model reads; None where there is no text.
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
