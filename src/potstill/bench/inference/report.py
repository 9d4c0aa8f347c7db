"""The measurements of `bench inference`, and their report."""

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
from potstill.wording import counted

BUSY = 0.05


@dataclass(frozen=True)
class InferenceBench:
    """All measurements, the machine and the settings.

    Attributes:
        machine: the machine.
        versions: of Python, potstill, and the libraries that run the models.
        data: description of the requests.
        requests: number of requests.
        max_length: tokens that requests were cut to; None if they were not cut.
        threads: of a request.
        warmup: requests that each form ran to warm up.
        passes: over all requests, for latency.
        turns: number of turns that the passes were divided into. The forms alternate in each turn.
        date: start of the measurement.
        limits: of the machine.
        disturbance: other work on the machine while latency and throughput were measured.
        energy: how the energy was measured; None if not asked for.
        rows: the forms. The others are compared with the first.
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
        return "\n".join([*_head(self), "", text(tables(self.rows, self.energy is not None), _notes(self))])


def tables(rows: list[Row], energy: bool) -> list[Grid]:
    """Return the tables of size, latency, throughput, the limit, and energy if it was measured."""
    grids = [_sizes(rows), _latency(rows), _throughput(rows), _bounds(rows), *([_energy(rows)] if energy else [])]
    return [grid for grid in grids if grid.header]


def _head(bench: InferenceBench) -> list[str]:
    passes = f", {bench.passes} times" if bench.passes > 1 else ""
    cut = f", cut to {bench.max_length} tokens" if bench.max_length else ""
    lines = [
        f"{bench.machine} · {counted(bench.threads, 'thread')} a request",
        ", ".join(f"{name} {number}" for name, number in bench.versions.items()),
        f"{bench.data}{cut}{passes} · {bench.disturbance}",
    ]
    models_of: dict[str, list[str]] = {}
    for row in bench.rows:
        models = models_of.setdefault(f"{'words' if row.model == ELMO else 'tokens'}: {row.lengths}", [])
        if row.model not in models:
            models.append(row.model)
    lines += [f"{', '.join(models)}, {lengths}" for lengths, models in models_of.items()]
    return [visible(line) for line in lines]


def _grid(caption: str, rows: list[Row], columns: dict[str, list[str]]) -> Grid:
    """Return a table of the columns that have a figure in at least one row."""
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
    return _grid("Size: memory is the peak in a separate process; FLOPs are counted, for one request", rows, columns)


def _latency(rows: list[Row]) -> Grid:
    columns = {
        "median": [f"{row.latency.median:,.2f}" for row in rows],
        "p90": [f"{row.latency.p90:,.2f}" for row in rows],
        "p99": [f"{row.latency.p99:,.2f}" for row in rows],
        "pass, s": [f"{row.latency.seconds_of_a_pass:,.2f}" for row in rows],
        "tokenised": [NOTHING if row.tokenisation is None else f"{row.tokenisation:,.3f}" for row in rows],
        "times as fast": [_ratio(row.ratio) for row in rows],
    }
    return _grid("Latency: milliseconds of a single request, without its tokenisation", rows, columns)


def _throughput(rows: list[Row]) -> Grid:
    columns = {}
    for number, some in enumerate(rows[0].throughput):
        cells = [row.throughput[number] for row in rows]
        columns[f"{some.batch_size} at a time"] = [_per_second(cell) for cell in cells]
    return _grid(
        "Throughput: requests a second, and their ratio to the first row (median over turns)",
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
        "Limit: weights that a request reads, its least time here, and its measured time as a multiple of that",
        rows,
        columns,
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
        f"Latency was measured in {counted(bench.turns, 'turn')}. All forms run in each turn, and each turn starts "
        "with another "
        f"form. A form first runs requests for {SECONDS_TO_SETTLE} s that do not count. To warm up, each form ran "
        f"{counted(bench.warmup, 'request')}, the longest and the shortest. Ratios are to {first.model}, "
        f"{first.form}. They are "
        "medians over turns. Of the two numbers under a ratio, a tenth of the turns are below the first and a tenth "
        "above the second.",
        f"Limit: {limits.bytes_per_second / 1e9:,.1f} GB/s read from memory, products of "
        f"{limits.flops_per_second / 1e9:,.0f} GFLOP/s in float32 and {limits.int8_per_second / 1e9:,.0f} Gop/s in "
        "int8, all measured here with the same number of threads. For each request the longer of the two times counts. "
        "A form can be faster than its limit if a cache holds its weights from one request to the next.",
        "memory: the largest resident size, minus the size before the model was loaded. It includes loading, and for "
        "compiled models the compiler.",
    ]
    if new := [row.model for row in bench.rows if row.new_head]:
        notes.append(
            "Run with a new head for labels with random weights, which changes the scores but not the time: "
            f"{_names(new)}."
        )
    padded = [f"{some.padding:.0%} at {some.batch_size}" for some in first.throughput if some.padding]
    if padded:
        notes.append(
            "Requests are batched in the order of the data and padded to the longest of a batch. Share of padding: "
            f"{', '.join(padded)} at a time."
        )
    notes += [
        f"{row.model}, {row.form}, cannot take {some.batch_size} requests at a time: {some.why_not}."
        for row in bench.rows
        for some in row.throughput
        if some.why_not
    ]
    if bench.energy is not None:
        notes.append(f"Energy is of the whole machine. The figure of the processor is {bench.energy}.")
    if (shown := bench.disturbance).others > BUSY or (shown.stolen or 0.0) > BUSY:
        notes.append(f"The machine was also busy with other work, which makes times longer: {shown}.")
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
