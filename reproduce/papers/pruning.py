"""Michel et al. 2019: how many attention heads a task model can lose, and what distillation from itself wins back.

    python -m reproduce.papers.pruning --model MODEL --task_data glue/ --max_train_samples 20000

For each task a model is fine-tuned; its heads are removed step by step down to a tenth, for the curve; and parts of its
heads and neurons are removed and the rest is taught by the whole model. Latency is measured with `potstill bench
inference`, when nothing else runs: `--only_latency` measures it again alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from potstill.bench.inference.bench import bench_inference
from potstill.bench.inference.inference_arguments import BenchInferenceArguments
from potstill.report.plots import line_plot
from potstill.tasks.load import TaskDataAbsentError, find_split
from potstill.tasks.registry import find_task
from reproduce.common import Place, new_parser, place_of, read_json, read_result, run, write_result
from reproduce.runs import Job, run_jobs

TASKS = ("sst2", "mrpc")
PARTS: dict[str, dict[str, float]] = {
    "heads-25": {"heads": 0.25},
    "heads-50": {"heads": 0.5},
    "both-50": {"heads": 0.5, "neurons": 0.5},
}
"""Name → what is removed before the whole model teaches the rest."""

WITHIN = 0.5
"""Points that a model may lose to count as not worse."""


def new_options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = new_parser(__doc__, runs_per_gpu=4)
    parser.add_argument("--model", type=Path, help="folder or hub name of the encoder to fine-tune")
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each task (3)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help=f"tasks of GLUE ({' '.join(TASKS)})")
    parser.add_argument("--tuning_rate", type=float, default=1e-4, help="learning rate of the fine-tunings (1e-4)")
    parser.add_argument("--max_train_samples", type=int, help="training rows of a task; default: all")
    parser.add_argument("--importance_rows", type=int, default=4000, help="rows for the importance of heads (4000)")
    parser.add_argument("--curve_steps", type=int, default=9, help="points of the curve, down to a tenth of the heads")
    parser.add_argument("--requests", type=int, default=200, help="pairs of STS-B for the latency (200)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a request, for the latency (1)")
    parser.add_argument("--latency", action=argparse.BooleanOptionalAction, default=True, help="measure it at the end")
    parser.add_argument("--only_latency", action="store_true", help="measure it alone, of models that are there")
    return parser


def main(argv: list[str]) -> None:
    """Prune and distil back for each task and seed, and write the figures and the plot."""
    options, more = new_options().parse_known_args(argv)
    if options.model is None:
        print("pruning: left out, because --model names no encoder", flush=True)
        return
    place = place_of(options, more)
    tasks = [task for task in options.tasks if _has_data(task, options.task_data)]
    if not tasks:
        return
    seeds = range(1, options.seeds + 1)
    if options.only_latency:
        figures = read_result(place.results, "pruning") or {}
        figures = {name: value for name, value in figures.items() if name not in ("format_version", "conditions")}
    else:
        _run(options, place, tasks, seeds)
        figures = {"tasks": {task: _figures(place, task, seeds) for task in tasks}}
        _plot(place, figures)
        write_result(place, "pruning", figures)
    if options.latency or options.only_latency:
        figures["latency"] = _latency(options, place, tasks[0])
        write_result(place, "pruning", figures)


def _has_data(task: str, data: Path | None) -> bool:
    try:
        declared: Any = find_task(task)
        if data is not None:
            find_split(declared, "train", data)
    except TaskDataAbsentError as error:
        print(f"pruning: {task} is left out: {error}", flush=True)
        return False
    return True


def _run(options: Any, place: Place, tasks: list[str], seeds: range) -> None:
    """Do all runs; those that need no other run's model together."""

    def tuning(name: str, task: str, seed: int, model: Any, **more: Any) -> Job:
        values = {"model": model, "task": task, "task_data": options.task_data, "seed": seed}
        values |= {"learning_rate": options.tuning_rate, "max_train_samples": options.max_train_samples}
        return Job(name, "finetune", values | more, distributed=False, more=place.more)

    def pruning(name: str, task: str, seed: int, **more: Any) -> Job:
        rows = min(options.importance_rows, options.max_train_samples or options.importance_rows)
        values = {"model": place.work / _name(task, seed, "whole"), "task": task, "task_data": options.task_data}
        if not options.latency:
            values["timed_rows"] = 0
        values |= {"seed": seed, "max_train_samples": rows, "use_cpu": None if place.gpus else True}
        return Job(name, "prune", values | more, distributed=False)

    both = [(task, seed) for task in tasks for seed in seeds]
    run_jobs([tuning(_name(task, seed, "whole"), task, seed, options.model) for task, seed in both], place)
    share, steps = options.curve_steps / (options.curve_steps + 1), options.curve_steps
    jobs = [pruning(_name(task, seed, "curve"), task, seed, heads=share, steps=steps) for task, seed in both]
    jobs += [pruning(_name(task, seed, part), task, seed, **PARTS[part]) for task, seed in both for part in PARTS]
    run_jobs(jobs, place)
    jobs = [
        tuning(
            _name(task, seed, f"{part}-back"),
            task,
            seed,
            place.work / _name(task, seed, part),
            teacher=place.work / _name(task, seed, "whole"),
        )
        for task, seed in both
        for part in PARTS
    ]
    run_jobs(jobs, place)


def _name(task: str, seed: int, what: str) -> str:
    return f"pruning-{task}-{seed}-{what}"


def _figures(place: Place, task: str, seeds: range) -> dict[str, Any]:
    """Return the scores of a task: medians over the seeds, with the single ones."""

    def result(seed: int, what: str) -> dict[str, Any]:
        return read_json(place.work / _name(task, seed, what) / "results.json")

    curves = [result(seed, "curve")["pruning"]["curve"] for seed in seeds]
    curve = [
        {
            "heads_share": points[0]["heads_share"],
            "score": statistics.median(point["score"] for point in points),
            "by_seed": [point["score"] for point in points],
            "lost": statistics.median(
                first["score"] - point["score"] for first, point in zip(starts, points, strict=True)
            ),
        }
        for starts in [[points[0] for points in curves]]
        for points in zip(*curves, strict=True)
    ]
    parts = {}
    for part in PARTS:
        pruned, back = ([result(seed, what) for seed in seeds] for what in (part, f"{part}-back"))
        last = pruned[0]["pruning"]["curve"][-1]
        parts[part] = {
            "removed": {name: last[name] for name in ("heads", "heads_share", "neurons", "neurons_share")},
            "parameters": last["parameters"],
            "layer_parameters": last["layer_parameters"],
            "pruned": _scores([one["score"] for one in pruned]),
            "distilled_back": _scores([one["score"] for one in back]),
            "tuned_without_teacher": _scores(
                [one["without_teacher"]["score"] for one in back if one["without_teacher"] is not None]
            ),
        }
    enough = [point["heads_share"] for point in curve if point["lost"] <= WITHIN]
    return {
        "rows": result(seeds[0], "whole")["rows"],
        "whole": _scores([result(seed, "whole")["score"] for seed in seeds]),
        "whole_parameters": curves[0][0]["parameters"],
        "whole_layer_parameters": curves[0][0]["layer_parameters"],
        "curve": curve,
        f"largest_share_within_{WITHIN}": max(enough),
        "parts": parts,
    }


def _scores(scores: list[float]) -> dict[str, Any] | None:
    if not scores:
        return None
    return {"median": statistics.median(scores), "min": min(scores), "max": max(scores), "by_seed": scores}


def _plot(place: Place, figures: dict[str, Any]) -> None:
    """Write the curves of all tasks as SVG."""
    curves = {
        find_task(task).title: [(100 * point["heads_share"], point["score"]) for point in found["curve"]]
        for task, found in figures["tasks"].items()
    }
    place.results.mkdir(parents=True, exist_ok=True)
    path = place.results / "pruning.svg"
    path.write_text(line_plot(curves, "share of the heads removed, %", "score, %"), encoding="utf-8")
    print(f"wrote {path}", flush=True)


def _latency(options: Any, place: Place, task: str) -> dict[str, Any]:
    """Measure the whole model of a task and its pruned ones on the CPU, in turns, one pair at a time."""
    folders = {"whole": _name(task, 1, "whole"), **{part: _name(task, 1, f"{part}-back") for part in PARTS}}
    pairs = options.task_data is None or _has_data("stsb", options.task_data)  # random tokens otherwise
    args = BenchInferenceArguments(
        models=[f"{name}={place.work / folder}" for name, folder in folders.items()],
        data="stsb" if pairs else None,
        task_data=str(options.task_data) if options.task_data and pairs else None,
        threads=options.threads,
        batch_size=[1],
        compiled=False,
        max_requests=options.requests,
    )
    bench = bench_inference(args)
    return {
        "hardware": str(bench.machine),
        "threads": bench.threads,
        "requests": bench.requests,
        "disturbance": str(bench.disturbance),
        "models": {
            row.model: {
                "milliseconds": row.latency.median,
                "speed": None if row.ratio is None else [row.ratio.value, row.ratio.low, row.ratio.high],
                "flops": row.flops,
                "parameters": row.parameters,
                "bytes": row.bytes_on_disk,
            }
            for row in bench.rows
        },
    }


if __name__ == "__main__":
    sys.exit(run(main))
