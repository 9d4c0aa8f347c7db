"""Runs all measurements in order. The forms' processes do the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from potstill.bench.inference.energy import SECONDS_OF_A_TURN, TURNS, Energy, EnergyMeter, mean
from potstill.bench.inference.inference_arguments import BenchInferenceArguments
from potstill.bench.inference.machine import Disturbance, DisturbanceMeter
from potstill.bench.inference.processes import Process, all_at_once
from potstill.bench.inference.requests import SYNTHETIC_LENGTHS, Requests, evenly, synthetic_requests
from potstill.bench.inference.result import Throughput
from potstill.bench.inference.turns import Ratio, TurnsProgress, log, take_turns, turns_of
from potstill.errors import PotstillError

BATCHED_REQUESTS, BATCHES_AT_LEAST = 256, 4
"""Throughput is measured on this number of requests, evenly spread. It takes more if they make fewer batches than the
second number."""


@dataclass(frozen=True)
class Measured:
    """All measurements. Lists have one entry for each form, in the order of the processes.

    Attributes:
        requests: the requests.
        lengths: of each request, in the form's tokens.
        tokenisation: seconds of each text; empty if the requests are random tokens.
        latency: for each turn, seconds of each request.
        throughput: for each batch size.
        memory: largest resident size, and the size before the model was loaded, in bytes.
        disturbance: other work on the machine while latency and throughput were measured.
        energy: None if not asked for.
        energy_how: how the energy was measured; None if not asked for.
    """

    requests: Requests
    lengths: list[list[int]]
    tokenisation: list[list[float]]
    latency: list[list[list[float]]]
    throughput: list[list[Throughput]]
    memory: list[tuple[int, int]]
    disturbance: Disturbance
    energy: list[Energy | None]
    energy_how: str | None


def measure(args: BenchInferenceArguments, workers: Sequence[Process], requests: Requests | None) -> Measured:
    """Measure all forms.

    Args:
        args: options of the measurement.
        workers: one process for each form.
        requests: the requests to run; random tokens if None.

    Raises:
        PotstillError: a model cannot be loaded, or a request is too long for a model.
    """
    opened = all_at_once(workers, [("open", worker.form, args.threads) for worker in workers])
    longest = _longest_by_name(workers, opened)
    shared = min(longest.values(), default=SYNTHETIC_LENGTHS[-1])
    if args.max_length is not None and args.max_length > shared:
        name = min(longest, key=longest.__getitem__)
        raise PotstillError(
            f"--max_length is {args.max_length}, but the model {name!r} reads at most {shared} tokens: lower it."
        )
    if requests is None:
        requests = synthetic_requests(args.max_requests, args.max_length or shared)
    lengths = all_at_once(workers, [("read", requests, args.max_length)] * len(workers))
    for worker, found in zip(workers, lengths, strict=True):
        _check_lengths(worker.form.name, found, longest.get(worker.form.name), requests)
    log("warming up")
    all_at_once(workers, [("warm_up", args.warmup)] * len(workers))
    meter = DisturbanceMeter([worker.pid for worker in workers])
    tokenisation = [worker.call("tokenise", args.max_length) for worker in workers]
    turns = turns_of(len(requests), args.passes)
    latency = take_turns(
        turns, len(workers), lambda form, turn: workers[form].call("run", turn), TurnsProgress("latency")
    )
    memory = [worker.call("memory") for worker in workers]
    throughput: list[list[Throughput]] = [[] for _ in workers]
    for size in args.batch_size or ():
        measured = _single(latency) if size == 1 else _batched(workers, size, len(requests))
        for row, cell in zip(throughput, measured, strict=True):
            row.append(cell)
    disturbance = meter.read()
    energy: list[Energy | None] = [None] * len(workers)
    how = None
    if args.energy:
        energy, how = _energy(workers, args.country)
    return Measured(requests, lengths, tokenisation, latency, throughput, memory, disturbance, energy, how)


def _longest_by_name(workers: Sequence[Process], longest: Sequence[int | None]) -> dict[str, int]:
    """Return name of a model → largest number of tokens that it can read, without models that have no limit."""
    named = zip((worker.form.name for worker in workers), longest, strict=True)
    return {name: limit for name, limit in named if limit is not None}


def _check_lengths(name: str, lengths: Sequence[int], limit: int | None, requests: Requests) -> None:
    if limit is None or max(lengths) <= limit:
        return
    number = next(number for number, length in enumerate(lengths) if length > limit)
    raise PotstillError(
        f"The text of {requests.places[number]} has {lengths[number]:,} tokens, and the model {name!r} reads {limit:,} "
        f"at most: shorten the text, or cut all texts with --max_length {limit}."
    )


def _single(latency: list[list[list[float]]]) -> list[Throughput]:
    """Return the throughput of single requests, one after the other."""
    by_turn = [[sum(turn) for turn in form] for form in latency]
    return [
        Throughput(
            1,
            sum(map(len, latency[number])) / sum(turns),
            Ratio.of(by_turn[0], turns) if number else None,
        )
        for number, turns in enumerate(by_turn)
    ]


def _batched(workers: Sequence[Process], size: int, requests: int) -> list[Throughput]:
    """Return the throughput of batches of a size. Requests are repeated if there are few.

    ELMo's shape has none: the paper compares only its latency.
    """
    count = max(BATCHES_AT_LEAST, BATCHED_REQUESTS // size)
    numbers = [number % requests for number in evenly(max(requests, count * size), count * size)]
    batches = [numbers[start : start + size] for start in range(0, count * size, size)]
    log(f"{size} at a time: warming up")
    batched = [number for number, worker in enumerate(workers) if worker.form.runner != "elmo"]
    answers = all_at_once([workers[number] for number in batched], [("batch", batches)] * len(batched))
    padding = dict(zip(batched, answers, strict=True))  # a share, or the reason why the form cannot run the batches
    runnable = [number for number, answer in padding.items() if not isinstance(answer, str)]
    turns = take_turns(
        list(range(count)),
        len(runnable),
        lambda place, batch: [workers[runnable[place]].call("run_batch", batch)],
        TurnsProgress(f"{size} at a time"),
    )
    seconds = {number: [taken for (taken,) in turn] for number, turn in zip(runnable, turns, strict=True)}
    found = []
    for number in range(len(workers)):
        if number not in seconds:
            found.append(Throughput(size, None, why_not=padding.get(number)))
            continue
        ratio = Ratio.of(seconds[0], seconds[number]) if number and 0 in seconds else None
        found.append(Throughput(size, count * size / sum(seconds[number]), ratio, padding[number]))
    return found


def _energy(workers: Sequence[Process], country: str | None) -> tuple[list[Energy | None], str]:
    """Return the energy of a request for each form, measured in turns, and how it was measured."""
    meter = EnergyMeter(country)
    parts: list[list[Energy]] = [[] for _ in workers]
    try:
        for turn in range(TURNS):
            log(f"energy: turn {turn + 1} of {TURNS}, {SECONDS_OF_A_TURN * len(workers):.0f} s each")
            for worker, part in zip(workers, parts, strict=True):
                part.append(meter.measure(partial(worker.call, "run_for", SECONDS_OF_A_TURN)))
        return [mean(part) for part in parts], meter.how
    finally:
        meter.close()
