"""How the cost of a training step grows with blocks, depth, width and vocabulary, beside the plain step.

    python benchmarks/cost_growth.py --output growth.json --seconds 100
    python benchmarks/cost_growth.py --output growth.json --seconds 0         # only write the table and the plot again
    python benchmarks/cost_growth.py --output tiny.json --seconds 100 --tiny  # a dry run on a CPU

Cases run in the order of their importance, and each is written when it is done. A repeated command goes on with those
that are missing. The table is written beside the JSON file as Markdown, and the plot as SVG.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch

from potstill.bench.train import bench_train
from potstill.bench.train_arguments import BenchTrainArguments
from potstill.files import write_text
from potstill.versions import versions

TOKENS = 65536  # of a step
PLAIN_LOGITS = TOKENS * 30528  # the plain step fits into 80 GB with so many; with more words it gets fewer tokens
LIMIT = 80  # gigabytes; the table prints more than this in bold
MIDDLE = {"block_size": 512, "teacher_layers": 12, "hidden_size": 768, "vocab_size": 30522}
AXES: dict[str, tuple[str, list[int]]] = {
    "block_size": ("tokens of a block", [128, 256, 512, 1024, 2048]),
    "teacher_layers": ("layers of the teacher", [6, 12, 24]),
    "hidden_size": ("width", [384, 768, 1024]),
    "vocab_size": ("words of the vocabulary", [8192, 30522, 119547, 250002]),
}
ORDER = [
    ("block_size", 512), ("block_size", 2048), ("vocab_size", 250002), ("teacher_layers", 24), ("hidden_size", 1024),
    ("block_size", 128), ("hidden_size", 384), ("teacher_layers", 6), ("vocab_size", 8192), ("block_size", 1024),
    ("vocab_size", 119547), ("block_size", 256),
]  # fmt: skip


def main() -> None:
    """Measure what is missing, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--seconds", type=float, default=100.0, help="no case begins that would end later")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each case")
    parser.add_argument("--no_baseline", action="store_true", help="leave out the plain step")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU, to try the script")
    options = parser.parse_args()
    torch._dynamo.config.automatic_dynamic_shapes = False
    found = json.loads(options.output.read_text()) if options.output.is_file() else {"cases": {}}
    until, longest = time.monotonic() + options.seconds, 0.0
    for name, value in ORDER:
        key = f"{name} {value}"
        if key in found["cases"] or time.monotonic() + longest > until:
            continue
        started = time.monotonic()
        torch._dynamo.reset()
        case = _measured(name, value, options)
        found["cases"][key] = case
        found["versions"] = versions("potstill", "torch", "transformers")
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        write_text(options.output, json.dumps(found, indent=1) + "\n")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - started)
        print(f"[{time.monotonic() - started:.0f} s] {key}: {case}", flush=True)
    if found["cases"]:
        write_text(options.output.with_suffix(".md"), table(found["cases"]) + "\n")
        print(table(found["cases"]))
        _plot(found["cases"], options.output.with_suffix(".svg"))


def _measured(name: str, value: int, options: Any) -> dict[str, Any]:
    """Return speed and memory of a case, with the plain step if it fits."""
    shape = MIDDLE | {name: value}
    tokens = TOKENS
    settings: dict[str, Any] = {"bf16": True, "torch_compile": True, "dataloader_num_workers": 2, "bench_warmup": 4}
    if options.tiny:
        settings = {"use_cpu": True, "num_attention_heads": 2, "bench_warmup": 1}
        small = {"block_size": 16, "teacher_layers": 2, "hidden_size": 32, "vocab_size": 300}
        shape = small | {name: min(value, 4 * small[name])}
        tokens = 8 * shape["block_size"]
    blocks = max(1, tokens // shape["block_size"])
    plain_tokens = min(tokens, PLAIN_LOGITS // shape["vocab_size"])
    plain = {"baseline": True, "baseline_batch_size": max(1, plain_tokens // shape["block_size"])}
    for more in ([] if options.no_baseline else [plain]) + [{}]:
        args = BenchTrainArguments(
            **settings | shape | more,  # type: ignore[arg-type]
            bench_steps=5 if options.tiny else options.steps,
            per_device_train_batch_size=blocks,
        )
        try:
            found = bench_train(args)
        except Exception as error:  # the plain step, or both, do not fit
            print(f"{name} {value}: {' '.join(str(error).split())[:300]}", flush=True)
            continue
        case = {"tokens": blocks * shape["block_size"], **_speed(found.speed), "utilisation": _utilisation(found)}
        if found.baseline is not None:
            case |= {f"plain_{key}": figure for key, figure in _speed(found.baseline).items()}
            case["plain_tokens"] = more["baseline_batch_size"] * shape["block_size"]
        return case
    return {"failed": True}


def _speed(speed: Any) -> dict[str, Any]:
    peak = speed.peak_memory_bytes
    return {"tokens_per_second": round(speed.tokens_per_second), "peak_GB": None if not peak else round(peak / 1e9, 2)}


def _utilisation(found: Any) -> float:
    done = found.speed.tokens_per_second * found.flops_per_token.step
    return round(done / found.matrix_product_flops_per_second / found.processes, 3)


def table(cases: dict[str, Any]) -> str:
    """Return the cases as a table in Markdown, along each axis."""
    lines = ["| | tokens/s | of a measured product | peak memory, GB | plain, tokens/s | plain, peak memory, GB |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for name, (title, values) in AXES.items():
        for value in values:
            case = _case(cases, name, value)
            if case is None:
                continue
            if "failed" in case:
                lines.append(f"| {value:,} {title} | does not fit | | | | |")
                continue
            plain = case.get("plain_tokens_per_second")
            cells = [f"{value:,} {title}", f"{case['tokens_per_second']:,}", f"{100 * case['utilisation']:.1f} %"]
            cells.append(_gigabytes(case["peak_GB"]))
            if plain:
                fewer = case["plain_tokens"] < case["tokens"]
                few = f" with {case['plain_tokens']:,} tokens a step" if fewer else ""
                cells += [f"{plain:,}", _gigabytes(case["plain_peak_GB"]) + few]
            else:
                cells += ["does not fit", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gigabytes(peak: float | None) -> str:
    if peak is None:
        return "–"
    return f"**{peak:.1f}**" if peak > LIMIT else f"{peak:.1f}"


def _case(cases: dict[str, Any], name: str, value: int) -> dict[str, Any] | None:
    middle = f"block_size {MIDDLE['block_size']}"
    return cases.get(middle if value == MIDDLE[name] else f"{name} {value}")


def _plot(cases: dict[str, Any], path: Path) -> None:
    """Draw tokens per second and peak memory along each axis, for both steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, len(AXES))
    for column, (name, (title, values)) in enumerate(AXES.items()):
        known = {value: case for value in values if (case := _case(cases, name, value)) and "failed" not in case}
        for row, (key, label) in enumerate((("tokens_per_second", "tokens/s"), ("peak_GB", "peak memory, GB"))):
            for prefix, who in (("", "potstill"), ("plain_", "plain")):
                points = [(value, case[prefix + key]) for value, case in known.items() if case.get(prefix + key)]
                if points:
                    axes[row, column].plot(*zip(*points, strict=True), marker="o", markersize=3, label=who)
            axes[row, column].set(xscale="log", xlabel=title if row else "", ylabel="" if column else label)
            axes[row, column].set_xticks(values, [f"{value:,}" for value in values], fontsize="x-small")
            axes[row, column].minorticks_off()
            axes[row, column].set_ylim(bottom=0)
            axes[row, column].grid(alpha=0.25)
    if known:
        axes[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
