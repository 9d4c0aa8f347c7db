"""Tang et al. 2019: a BiLSTM alone, taught by a fine-tuned transformer, and taught with synthetic texts too.

    python -m reproduce.papers.bilstm --model MODEL --task_data glue/

For each task one transformer is fine-tuned. All BiLSTMs begin with the word embeddings that MODEL has before any
fine-tuning. Latency is measured with `potstill bench inference`, when nothing else runs: `--only_latency` measures it
again alone.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from potstill.bench.inference.bench import bench_inference
from potstill.bench.inference.inference_arguments import BenchInferenceArguments
from potstill.export.format import SUMMARY
from potstill.files import write_text
from potstill.tasks.load import TaskDataAbsentError, load_split
from potstill.tasks.registry import find_task
from reproduce.common import Place, new_parser, place_of, read_json, read_result, run, write_result
from reproduce.runs import Job, run_jobs

TASKS = ("sst2", "mrpc")
ROWS = {"alone": "BiLSTM alone", "taught": "taught", "augmented": "taught with synthetic texts"}
"""Name of a run → its row of the table."""

FORMATS = ("onnx", "onnx-int8")


def new_options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = new_parser(__doc__, runs_per_gpu=4)
    parser.add_argument("--model", help="folder or hub name of the encoder to fine-tune")
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data")
    parser.add_argument("--seeds", type=int, default=3, help="BiLSTMs of each kind (3)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help=f"tasks of GLUE ({' '.join(TASKS)})")
    parser.add_argument("--tuning_rate", type=float, default=5e-5, help="learning rate of the teachers (5e-5)")
    parser.add_argument("--samples", type=int, default=20, help="synthetic texts of a row (20)")
    parser.add_argument("--tagger", help="model for token classification that tells parts of speech; default: endings")
    parser.add_argument("--hidden_size", type=int, default=150, help="units of the LSTM in each direction (150)")
    parser.add_argument("--epochs", type=float, default=10, help="epochs of a BiLSTM on the labelled rows (10)")
    parser.add_argument("--augmented_epochs", type=float, default=3, help="epochs on labelled rows and texts (3)")
    parser.add_argument("--least_read", type=int, default=100_000, help="rows to read at least (100000)")
    parser.add_argument("--max_train_samples", type=int, help="training rows of a task; default: all")
    parser.add_argument("--requests", type=int, default=200, help="rows of the first task for the latency (200)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a request, for the latency (1)")
    parser.add_argument("--latency", action=argparse.BooleanOptionalAction, default=True, help="measure it at the end")
    parser.add_argument("--only_latency", action="store_true", help="measure it alone, of models that are there")
    return parser


def main(argv: list[str]) -> None:
    """Train the teachers and the BiLSTMs of all tasks and seeds, and write and print the table."""
    options, more = new_options().parse_known_args(argv)
    if options.model is None:
        print("bilstm: left out, because --model names no encoder", flush=True)
        return
    place = place_of(options, more)
    rows = {task: count for task in options.tasks if (count := _rows(task, options)) is not None}
    if not rows:
        return
    seeds = range(1, options.seeds + 1)
    if options.only_latency:
        figures = read_result(place.results, "bilstm") or {}
        figures = {name: value for name, value in figures.items() if name not in ("format_version", "conditions")}
    else:
        _train(options, place, rows, seeds)
        figures = {"tasks": {task: _figures(place, task, seeds) for task in rows}}
        write_result(place, "bilstm", figures)
    if options.latency or options.only_latency:
        figures["latency"] = _latency(options, place, next(iter(rows)))
        write_result(place, "bilstm", figures)
    print(table(figures), flush=True)


def _rows(task: str, options: Any) -> int | None:
    """Return the number of training rows of a task, or print why there are none."""
    declared: Any = find_task(task)
    try:
        count = len(load_split(declared, "train", None if options.task_data is None else str(options.task_data)))
    except TaskDataAbsentError as error:
        print(f"bilstm: {task} is left out: {error}", flush=True)
        return None
    return count if options.max_train_samples is None else min(count, options.max_train_samples)


def _train(options: Any, place: Place, rows: dict[str, int], seeds: range) -> None:
    """Do all runs; those that need no other run's model together."""

    def job(name: str, task: str, **more: Any) -> Job:
        values = {"task": task, "task_data": options.task_data, "max_train_samples": options.max_train_samples}
        values |= {"per_device_eval_batch_size": 512}
        return Job(name, "finetune", values | more, distributed=False, more=place.more)

    def lstm(task: str, seed: int, what: str, epochs: float, **more: Any) -> Job:
        given = f"{{hidden_size: {options.hidden_size}, tokenizer: {options.model}, embeddings: {options.model}}}"
        values = {"model": "bilstm", "bilstm": given, "seed": seed, "num_train_epochs": epochs}
        return job(_name(task, what, seed), task, **values, **more)

    teachers = [
        job(_name(task, "teacher"), task, model=options.model, seed=1, learning_rate=options.tuning_rate)
        for task in rows
    ]
    run_jobs(teachers, place)
    tagger = "" if options.tagger is None else f", tagger: {options.tagger}"
    first: list[Job] = []
    others: list[Job] = []
    for task, count in rows.items():
        taught = {"teacher": place.work / _name(task, "teacher"), "without_teacher_too": "false"}
        augment = {"augment": f"{{samples: {options.samples}{tagger}}}", "without_unlabelled_too": "false"}
        size = {"per_device_train_batch_size": 256, "learning_rate": 2e-3}
        epochs = math.ceil(max(options.epochs, options.least_read / count))
        texts = count * (1 + options.samples)
        longer = math.ceil(max(options.augmented_epochs, 5 * options.least_read / texts))
        for seed in seeds:
            jobs = first if seed == seeds[0] else others  # the first one keeps texts and logits for the others
            jobs.append(lstm(task, seed, "augmented", longer, **taught, **augment, **size))
            others += [lstm(task, seed, "alone", epochs), lstm(task, seed, "taught", epochs, **taught)]
    run_jobs(first, place)
    run_jobs(others, place)


def _name(task: str, what: str, seed: int | None = None) -> str:
    return f"bilstm-{task}-{what}" + (f"-{seed}" if seed is not None else "")


def _figures(place: Place, task: str, seeds: range) -> dict[str, Any]:
    """Return the scores of a task: medians over the seeds, with the single ones."""

    def result(what: str, seed: int | None = None) -> dict[str, Any]:
        return read_json(place.work / _name(task, what, seed) / "results.json")

    teacher = result("teacher")
    found: dict[str, Any] = {"teacher": {"median": teacher["score"], "metrics": teacher["metrics"]}}
    for what in ROWS:
        runs = [result(what, seed) for seed in seeds]
        scores = [one["score"] for one in runs]
        found[what] = {"median": statistics.median(scores), "min": min(scores), "max": max(scores), "by_seed": scores}
        found[what]["seconds"] = statistics.median(one["seconds"]["training"] for one in runs)
        found[what]["steps"] = runs[0]["steps"]
    texts = result("augmented", seeds[0])["unlabelled"]
    gained = found["augmented"]["median"] - found["alone"]["median"]
    return {"rows": teacher["rows"], "texts": texts, "scores": found, "gained_over_alone": gained}


def _latency(options: Any, place: Place, task: str) -> dict[str, Any]:
    """Export the teacher and a BiLSTM of a task, and measure all forms on the CPU, one request at a time."""
    folders = {"teacher": _name(task, "teacher"), "BiLSTM": _name(task, "augmented", 1)}
    # The limits are wide, because the scores of the exports are in the results.
    given = {"task": task, "tolerance": 10, "min_agreement": 0, "score_tolerance": 1}
    if options.task_data is not None:
        given["check_data"] = options.task_data
    exports = [
        Job(f"{folder}-{form}", "export", {"model": place.work / folder, "format": form} | given, distributed=False)
        for folder in folders.values()
        for form in FORMATS
    ]
    done = run_jobs(exports, place)
    names = [f"{name}, {form}" for name in folders for form in FORMATS]
    scores = {name: read_json(one.folder / SUMMARY)["scores"]["after"] for name, one in zip(names, done, strict=True)}
    declared: Any = find_task(task)
    dev = load_split(declared, declared.dev[0], None if options.task_data is None else str(options.task_data))
    requests = place.work / f"bilstm-{task}.txt"
    columns = [dev[name][:] for name in ("text", "pair") if name in dev.column_names]
    write_text(requests, "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)))
    models = {name: place.work / folder for name, folder in folders.items()}
    models |= {
        f"{name}, {form}": place.work / f"{folder}-{form}" for name, folder in folders.items() for form in FORMATS
    }
    args = BenchInferenceArguments(
        models=[f"{name}={folder}" for name, folder in models.items()],
        data=str(requests),
        threads=options.threads,
        batch_size=[1],
        compiled=False,
        max_requests=options.requests,
        max_length=128,
    )
    bench = bench_inference(args)
    found = {
        row.model: {
            "milliseconds": row.latency.median,
            "speed": None if row.ratio is None else [row.ratio.value, row.ratio.low, row.ratio.high],
            "parameters": row.parameters,
            "flops": row.flops,
            "bytes": row.bytes_on_disk,
            "scores": scores.get(row.model),
        }
        for row in bench.rows
    }
    return {
        "task": task,
        "hardware": str(bench.machine),
        "threads": bench.threads,
        "requests": bench.requests,
        "disturbance": str(bench.disturbance),
        "models": found,
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    tasks = figures["tasks"]
    lines = [
        "| | " + " | ".join(find_task(task).title for task in tasks) + " |",
        "|---|" + "--:|" * len(tasks),
        "| teacher | " + " | ".join(f"{found['scores']['teacher']['median']:.1f}" for found in tasks.values()) + " |",
    ]
    for what, title in ROWS.items():
        scores = [found["scores"][what] for found in tasks.values()]
        cells = [f"{one['median']:.1f} ({one['min']:.1f}–{one['max']:.1f})" for one in scores]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    gained = [f"{found['gained_over_alone']:+.1f}" for found in tasks.values()]
    lines.append("| synthetic texts and teacher against alone | " + " | ".join(gained) + " |")
    if (latency := figures.get("latency")) is not None:
        title = find_task(latency["task"]).title
        lines += ["", f"| | parameters | MFLOPs | MB | milliseconds | {title} |", "|---|--:|--:|--:|--:|--:|"]
        for name, one in latency["models"].items():
            score = "" if one["scores"] is None else f"{one['scores']['score']:.1f}"
            sizes = [f"{one['parameters'] / 1e6:.1f} M", f"{one['flops'] / 1e6:.1f}", f"{one['bytes'] / 1e6:.1f}"]
            lines.append(f"| {name} | {' | '.join(sizes)} | {one['milliseconds']:.2f} | {score} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
