"""What `bench inference` has measured: as JSON and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from potstill.bench.inference.inference_arguments import ELMO
from potstill.bench.inference.limits import Limits
from potstill.bench.inference.machine import Disturbance, Machine
from potstill.bench.inference.result import Row, Throughput
from potstill.bench.inference.turns import SECONDS_TO_SETTLE, Ratio
from potstill.evaluation.tables import Grid, text
from potstill.files import write_text
from potstill.json_files import json_text
from potstill.report.markdown import NOTHING, visible

BUSY = 0.05


@dataclass(frozen=True)
class InferenceBench:
    """All that was measured, and on what.

    Attributes:
        machine: on which.
        versions: of Python, potstill, and the libraries that run the models.
        data: what the requests were, in words.
        requests: how many there were.
        max_length: tokens that they were cut to; None if not.
        threads: of a request.
        warmup: requests that each form ran before.
        passes: over all requests, for latency.
        turns: that the passes were divided into, for the forms to take turns.
        date: when it began.
        limits: of the machine.
        disturbance: what else went on while latency and throughput were measured.
        energy: how it was measured; None if not asked for.
        rows: the forms, the first being the one that others are compared with.
    """

    machine: Machine
    versions: dict[str, str]
    data: str
    requests: int
    max_length: int | None
    threads: int
    warmup: int
    passes: int
    turns: int
    date: str
    limits: Limits
    disturbance: Disturbance
    energy: str | None
    rows: list[Row]

    def save(self, file: str | Path) -> None:
        """Write all of it as JSON.

        Raises:
            PotstillError: it cannot be written.
        """
        write_text(Path(file).expanduser(), json_text(asdict(self), str(file)) + "\n")

    def __str__(self) -> str:
        grids = [_sizes(self.rows), _latency(self.rows), _throughput(self.rows), _bounds(self.rows)]
        if self.energy is not None:
            grids.append(_energy(self.rows))
        return "\n".join([*_head(self), "", text([grid for grid in grids if grid.header], _notes(self))])


def _head(bench: InferenceBench) -> list[str]:
    passes = f", {bench.passes} times" if bench.passes > 1 else ""
    cut = f", cut to {bench.max_length} tokens" if bench.max_length else ""
    lines = [
        f"{bench.machine} · {bench.threads} thread{'s' if bench.threads > 1 else ''} a request",
        ", ".join(f"{name} {number}" for name, number in bench.versions.items()),
        f"{bench.data}{cut}{passes} · {bench.disturbance}",
    ]
    said: dict[str, list[str]] = {}
    for row in bench.rows:
        words = said.setdefault(f"{'words' if row.model == ELMO else 'tokens'}: {row.lengths}", [])
        if row.model not in words:
            words.append(row.model)
    lines += [f"{', '.join(models)}, {what}" for what, models in said.items()]
    return [visible(line) for line in lines]


def _grid(caption: str, rows: list[Row], columns: dict[str, list[str]]) -> Grid:
    """Return a table of columns, without those that have no figure for any row."""
    kept = {title: cells for title, cells in columns.items() if set(cells) != {NOTHING}}
    lines = [(f"{row.model}, {row.form}", [cells[n] for cells in kept.values()]) for n, row in enumerate(rows)]
    return Grid(caption, list(kept), lines)


def _sizes(rows: list[Row]) -> Grid:
    columns = {
        "parameters": [f"{row.parameters / 1e6:,.2f} M" for row in rows],
        "without head": [f"{row.encoder_parameters / 1e6:,.2f} M" for row in rows],
        "on disk": [_megabytes(row.bytes_on_disk) for row in rows],
        "memory": [_megabytes(row.model_memory_bytes) for row in rows],
        "GFLOPs": [f"{row.flops / 1e9:,.3g}" for row in rows],
    }
    return _grid("Size: peak memory is of a process of its own; FLOPs are of a request, by count", rows, columns)


def _latency(rows: list[Row]) -> Grid:
    columns = {
        "median": [f"{row.latency.median:,.2f}" for row in rows],
        "p90": [f"{row.latency.p90:,.2f}" for row in rows],
        "p99": [f"{row.latency.p99:,.2f}" for row in rows],
        "pass, s": [f"{row.latency.seconds_of_a_pass:,.2f}" for row in rows],
        "tokenised": [NOTHING if row.tokenisation is None else f"{row.tokenisation:,.3f}" for row in rows],
        "times as fast": [_ratio(row.ratio) for row in rows],
    }
    return _grid("Latency: milliseconds of a single request; tokenising it is apart", rows, columns)


def _throughput(rows: list[Row]) -> Grid:
    columns = {}
    for number, some in enumerate(rows[0].throughput):
        cells = [row.throughput[number] for row in rows]
        columns[f"{some.batch_size} at a time"] = [_per_second(cell) for cell in cells]
    return _grid(
        "Throughput: requests a second, and how many times those of the first row by the median over turns",
        rows,
        columns,
    )


def _bounds(rows: list[Row]) -> Grid:
    columns = {
        "weights": [_megabytes(row.bound.weight_bytes) for row in rows],
        "reading, ms": [f"{row.bound.milliseconds_of_weights:,.3g}" for row in rows],
        "products, ms": [f"{row.bound.milliseconds_of_products:,.3g}" for row in rows],
        "bound, ms": [f"{row.bound.milliseconds:,.3g}" for row in rows],
        "measured": [f"{row.bound.times:,.2f} ×" for row in rows],
    }
    return _grid(
        "Limit: weights that a request reads, its least time here, and how many times that it took", rows, columns
    )


def _energy(rows: list[Row]) -> Grid:
    found = [row.energy for row in rows]
    columns = {
        "joules": [NOTHING if e is None else f"{e.joules:,.3g}" for e in found],
        "processor's": [NOTHING if e is None else f"{e.processor_joules:,.3g}" for e in found],
        "mg CO₂": [NOTHING if e is None else f"{1000 * e.grams_co2:,.3g}" for e in found],
    }
    return _grid("Energy of a request", rows, columns)


def _notes(bench: InferenceBench) -> list[str]:
    first, limits = bench.rows[0], bench.limits
    notes = [
        f"{bench.turns:,} turns for latency, each form in each of them, each time another one first, and requests "
        f"uncounted for {SECONDS_TO_SETTLE} s before; {bench.warmup} requests and the longest and shortest to "
        f"warm up. Ratios are to {first.model}, {first.form}: medians over turns with what a tenth of the turns "
        "is below and above.",
        f"Limit: {limits.bytes_per_second / 1e9:,.1f} GB/s read from memory, products of "
        f"{limits.flops_per_second / 1e9:,.0f} GFLOP/s in float32 and {limits.int8_per_second / 1e9:,.0f} Gop/s in "
        "int8, all measured here with as many threads; the longer of the two times counts, request by request. "
        "Weights that a cache holds from one request to the next can be faster than memory.",
        "memory: the largest resident size less what the libraries took before the model was loaded; loading, and for "
        "compiled models the compiler, are in it.",
    ]
    if new := [row.model for row in bench.rows if row.new_head]:
        labels = "under a new head for labels, of random weights"
        notes.append(f"Run {labels}, which changes what is said and not how long it takes: {_names(new)}.")
    padded = [f"{some.padding:.0%} at {some.batch_size}" for some in first.throughput if some.padding]
    if padded:
        notes.append(
            f"Requests at a time are taken as they come and padded to the longest; {', '.join(padded)} is padding."
        )
    notes += [
        f"{row.model}, {row.form}, cannot take {some.batch_size} requests at a time: {some.why_not}."
        for row in bench.rows
        for some in row.throughput
        if some.why_not
    ]
    if bench.energy is not None:
        notes.append(f"Energy is of the whole machine; that of the processor {bench.energy}.")
    if (shown := bench.disturbance).others > BUSY or (shown.stolen or 0.0) > BUSY:
        notes.append(f"The machine was not idle, so times are longer than they need be: {shown}.")
    return notes


def _names(models: list[str]) -> str:
    return ", ".join(dict.fromkeys(models))


def _ratio(ratio: Ratio | None) -> str:
    return "1" if ratio is None else f"{ratio.value:,.2f}\n{ratio.low:,.2f}–{ratio.high:,.2f}"


def _per_second(measured: Throughput) -> str:
    if measured.per_second is None:
        return NOTHING
    ratio = "" if measured.ratio is None else f"\n{measured.ratio.value:,.2f} ×"
    return f"{measured.per_second:,.1f}{ratio}"


def _megabytes(size: int | None) -> str:
    return NOTHING if size is None else f"{size / 1e6:,.1f} MB"
