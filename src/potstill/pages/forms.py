"""The parts of a page on exports and on measurements of speed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from potstill.bench.inference.machine import Machine
from potstill.bench.inference.report import tables
from potstill.pages.folders import Found
from potstill.pages.tasks import grid_table
from potstill.report import html
from potstill.report.markdown import NOTHING
from potstill.wording import counted


def exports(found: Sequence[Found]) -> list[str]:
    """Return the table of exports: what was written, its size, and how far it is from its source."""
    rows = []
    for one in found:
        record = one.record
        file = one.path / record["file"]
        agreement, scores = record["agreement"], record["scores"]
        compared = isinstance(agreement, Mapping)
        rows.append(
            [
                one.name,
                record["format"],
                record["quantization"] or "none",
                f"{file.stat().st_size / 1e6:,.1f} MB" if file.is_file() else NOTHING,
                record["source"],
                _share(agreement, "same") if compared else NOTHING,
                f"{agreement['answers']:,}" if compared and "answers" in agreement else NOTHING,
                *(f"{scores[when]['score']:.4g}" if scores else NOTHING for when in ("before", "after")),
                ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
            ]
        )
    header = ["", "format", "quantisation", "size", "source", "same answers", "answers compared"]
    return [
        html.table([*header, "score of the source", "score of the export", "versions"], rows, texts=True),
        html.paragraph(
            "The size is that of the main file. “Same answers” is the share of the answers of the export that are "
            "those of its source, on real texts."
        ),
    ]


def inference(one: Found) -> list[str]:
    """Return the tables of `bench inference`, and the latency as bars."""
    bench = json.loads(json.dumps(one.record), object_hook=lambda values: SimpleNamespace(**values))
    latency = {f"{row.model}, {row.form}": (row.latency.median, f"{row.latency.median:,.2f} ms") for row in bench.rows}
    versions = ", ".join(f"{name} {number}" for name, number in one.record["versions"].items())
    machine = Machine(**one.record["machine"])
    return [
        html.subheading(one.name),
        html.paragraph(
            f"{bench.data}. {counted(bench.requests, 'request')}, {counted(bench.threads, 'thread')} each, on "
            f"{bench.date}."
        ),
        html.subheading("Median latency of a request"),
        html.bars(latency),
        *map(grid_table, tables(bench.rows, bench.energy is not None)),
        html.paragraph(f"{machine}; {versions}."),
    ]


def speed(found: Sequence[Found]) -> list[str]:
    """Return the table of `bench train` for each measurement, and the speed as bars."""
    rows, bars = [], {}
    for one in found:
        record, measured = one.record, one.record["speed"]
        rate, plain = measured["tokens_per_second"], record["baseline"]
        bars[one.name] = (rate, f"{rate:,.0f} tokens/s")
        if plain:
            bars[f"{one.name}: plain step"] = (
                plain["tokens_per_second"],
                f"{plain['tokens_per_second']:,.0f} tokens/s",
            )
        peak = measured["peak_memory_bytes"]
        rows.append(
            [
                one.name,
                f"{rate:,.0f}",
                f"{measured['ms_per_step']:,.1f}",
                NOTHING if peak is None else f"{peak / 2**30:,.2f} GiB",
                f"{record['utilisation']:.1%}",
                NOTHING if record["ratio_to_baseline"] is None else f"{record['ratio_to_baseline']:.2f} ×",
                f"{record['processes']} × {record['hardware']}, {record['dtype']}",
            ]
        )
    header = ["", "tokens/s", "ms per step", "peak memory", "utilisation", "potstill ÷ plain", "hardware"]
    parts = [f"{part} {time:,.1f} ms" for part, time in found[0].record["speed"]["ms_per_step_by_part"].items()]
    of_parts = html.paragraph(f"Parts of a step of {found[0].name}: {', '.join(parts)}.")
    return [html.bars(bars), html.table(header, rows), of_parts]


def _share(record: Mapping[str, Any], name: str) -> str:
    return f"{record[name]:.2%}" if name in record else NOTHING
