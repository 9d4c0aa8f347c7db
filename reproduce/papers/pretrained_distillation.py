"""Turc et al. 2019: small models that are pre-trained, taught by a task teacher, or both; score against size.

    python -m reproduce.papers.pretrained_distillation --model MODEL --text text.jsonl.zst --task_data glue/

For each task, few of its rows keep their labels. The other texts of its training set have none: they are the transfer
set. A teacher is fine-tuned on the labelled rows. New models of several shapes then learn in three ways: pre-training
by masked LM and fine-tuning on the labelled rows; the teacher's soft targets on the transfer set, from random weights;
and all three stages. `--corpus` names blocks that are prepared already, with the tokenizer of `--model`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from potstill.files import write_text
from potstill.report.markdown import table
from potstill.report.plots import line_plot
from potstill.student.shapes import sizes_of_shape
from potstill.tasks.load import TaskDataAbsentError, load_split
from potstill.tasks.registry import find_task
from reproduce.common import Place, new_parser, place_of, read_json, run, write_result
from reproduce.runs import Job, run_job, run_jobs

NAME = "pretrained_distillation"

LINES = {
    "tuned": "pre-training + fine-tuning",
    "distilled": "distillation alone",
    "both": "pre-trained distillation",
}
"""Name of the runs → name of the line."""

Row = dict[str, Any]


def new_options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = new_parser(__doc__, minutes=0.5, runs_per_gpu=4)
    parser.add_argument("--model", type=Path, help="folder or hub name of the encoder that becomes the teacher")
    parser.add_argument("--text", nargs="+", help="text for the pre-training, as `potstill prepare` takes it")
    parser.add_argument("--corpus", type=Path, help="blocks of 128 tokens in place of --text")
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data, for SST-2")
    parser.add_argument("--banking77", type=Path, help="folder of Banking77's train.csv and test.csv; left out if none")
    parser.add_argument("--shapes", nargs="+", default=["2x128", "4x256", "4x512"], help="shapes, from small to large")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each line and shape (3)")
    parser.add_argument("--labelled", type=int, default=2000, help="rows of a task that keep their labels (2000)")
    parser.add_argument("--texts", type=int, help="texts of a transfer set; default: all that are left")
    parser.add_argument("--distill_steps", type=int, default=3000, help="steps of 128 texts of a distillation (3000)")
    parser.add_argument("--tuning_steps", type=int, default=600, help="steps of 32 rows of a fine-tuning (600)")
    return parser


def main(argv: list[str]) -> None:
    """Train the teachers, pre-train a model of each shape, train them in three ways, and write figures and plots."""
    options, more = new_options().parse_known_args(argv)
    if options.model is None or not (options.text or options.corpus):
        missing = "--model names no encoder" if options.model is None else "--text names no text for the pre-training"
        print(f"{NAME}: left out, because {missing}", flush=True)
        return
    for shape in options.shapes:
        sizes_of_shape(shape)
    place = place_of(options, more)
    tasks = _tasks(options, place)
    if not tasks:
        return
    corpus = options.corpus or _blocks(options, place)
    cpu = None if place.gpus else True
    seeds = range(1, options.seeds + 1)

    largest_first = sorted(options.shapes, key=lambda shape: -sizes_of_shape(shape)["hidden_size"])
    # A pre-training has so many minutes, so it does not share its GPU.
    jobs = [_pretraining(shape, corpus, options.minutes, cpu) for shape in largest_first]
    run_jobs(jobs, dataclasses.replace(place, runs_per_gpu=1))
    run_jobs([_teaching(task, file, options, place, cpu) for task, file in tasks.items()], place)
    runs = [
        _task_run(line, task, file, shape, seed, options, place, cpu)
        for seed in seeds
        for task, file in tasks.items()
        for shape in largest_first
        for line in LINES
    ]
    run_jobs(runs, place)

    figures: dict[str, Any] = {
        "teacher": Path(options.model).name,
        "labelled": options.labelled,
        "minutes": options.minutes,
        "steps": {"distill": options.distill_steps, "finetune": options.tuning_steps},
        "pretraining": {shape: _pretrained(place, shape) for shape in options.shapes},
        "tasks": {task: _figures(place, task, options.shapes, seeds) for task in tasks},
    }
    write_result(place, NAME, figures)
    for task, found in figures["tasks"].items():
        path = place.results / f"{NAME}-{task}.svg"
        write_text(path, plot(found))
        print(f"wrote {path}\n\n{task}\n\n{as_table(found)}\n", flush=True)


def _tasks(options: Any, place: Place) -> dict[str, Path]:
    """Write the data of each task that has data; return name → file that declares the task."""
    found = {}
    try:
        declared: Any = find_task("sst2")
        data = None if options.task_data is None else str(options.task_data)
        names = declared.labels
        train, dev = (
            [{"text": row["text"], "label": names[row["label"]]} for row in load_split(declared, split, data)]
            for split in ("train", "dev")
        )
        found["sst2"] = _declared("sst2", "SST-2", train, dev, options, place)
    except TaskDataAbsentError as error:
        print(f"{NAME}: sst2 is left out: {error}", flush=True)
    if options.banking77 is None:
        print(f"{NAME}: banking77 is left out: --banking77 names no folder", flush=True)
    else:
        train, dev = (_rows(options.banking77 / f"{split}.csv") for split in ("train", "test"))
        found["banking77"] = _declared("banking77", "Banking77", train, dev, options, place)
    return found


def _rows(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as lines:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(lines)]


def _declared(name: str, title: str, train: list[Row], dev: list[Row], options: Any, place: Place) -> Path:
    """Write labelled rows, texts without labels, rows to score, and the file that declares the task."""
    folder = place.work / f"{NAME}-data" / name
    order = np.random.default_rng(0).permutation(len(train)).tolist()
    first = {train[number]["label"]: number for number in reversed(order)}  # every label has a row
    order = list(dict.fromkeys([*first.values(), *order]))
    kept, rest = order[: options.labelled], order[options.labelled :][: options.texts]
    files: dict[str, Iterable[Row]] = {
        "labelled": (train[number] for number in kept),
        "texts": ({"text": train[number]["text"]} for number in rest),
        "dev": dev,
    }
    for file, rows in files.items():
        write_text(folder / f"{file}.jsonl", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    lines = ["kind: classification", f"name: {name}-few", "train: labelled.jsonl", "eval: dev.jsonl"]
    write_text(folder / "task.yaml", "\n".join(lines) + "\n")
    print(f"{title}: {len(kept):,} rows with labels, {len(rest):,} texts without, {len(dev):,} scored", flush=True)
    return folder / "task.yaml"


def _blocks(options: Any, place: Place) -> Path:
    values = {"text": options.text, "tokenizer": options.model, "block_size": 128, "validation_fraction": 0.01}
    return run_job(Job(f"{NAME}-blocks", "prepare", values, distributed=False), place).folder


def _pretraining(shape: str, corpus: Path, minutes: float, cpu: bool | None) -> Job:
    values: dict[str, Any] = {"corpus": corpus, "shape": shape, "per_device_train_batch_size": 256 if not cpu else 8}
    values |= {"learning_rate": 1e-3, "dropout": 0.0, "num_train_epochs": 1000, "max_eval_samples": 256}
    values |= {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 200, "report_to": "none", "use_cpu": cpu}
    values |= {} if cpu else {"bf16": True, "cuda_graphs": True}
    return Job(f"{NAME}-pretrained-{shape}", "pretrain", values, minutes, distributed=False)


def _common(task: Path, cpu: bool | None) -> dict[str, Any]:
    return {"task": task, "max_length": 64, "report_to": "none", "use_cpu": cpu}


def _teaching(name: str, task: Path, options: Any, place: Place, cpu: bool | None) -> Job:
    stages = {"finetune": {"learning_rate": 1e-4, "max_steps": options.tuning_steps}}
    values = {"stages": json.dumps(stages), "model": options.model} | _common(task, cpu)
    return Job(f"{NAME}-{name}-teacher", "finetune", values, distributed=False, more=place.more)


def _task_run(
    line: str, name: str, task: Path, shape: str, seed: int, options: Any, place: Place, cpu: bool | None
) -> Job:
    distil = {"learning_rate": 5e-4, "max_steps": options.distill_steps, "per_device_train_batch_size": 128}
    tune = {"learning_rate": 2e-4, "max_steps": options.tuning_steps, "per_device_train_batch_size": 32}
    stages = {"tuned": {"finetune": tune}, "distilled": {"distill": distil}}.get(line)
    values: dict[str, Any] = {"stages": json.dumps(stages or {"distill": distil, "finetune": tune}), "seed": seed}
    if line == "distilled":
        values["shape"] = shape
    else:
        values["model"] = place.work / f"{NAME}-pretrained-{shape}"
    if line != "tuned":
        values["teacher"] = place.work / f"{NAME}-{name}-teacher"
        values["unlabelled"] = task.with_name("texts.jsonl")
    return Job(_run_name(name, line, shape, seed), "finetune", values | _common(task, cpu), None, False, place.more)


def _run_name(task: str, line: str, shape: str, seed: int) -> str:
    return f"{NAME}-{task}-{line}-{shape}-{seed}"


def _pretrained(place: Place, shape: str) -> dict[str, Any]:
    results = read_json(place.work / f"{NAME}-pretrained-{shape}" / "results.json")
    return {"steps": results["cost"]["steps"], "tokens": results["cost"]["tokens"]} | (
        results["held_out"]["final"] or {}
    )


def _figures(place: Place, task: str, shapes: list[str], seeds: range) -> dict[str, Any]:
    """Return the scores of a task: those of the teacher, and of each line and shape over the seeds."""
    teacher = read_json(place.work / f"{NAME}-{task}-teacher" / "results.json")
    found: dict[str, Any] = {"task": task, "rows": teacher["rows"], "teacher": teacher["score"], "shapes": {}}
    found["teacher_parameters"] = _parameters(place.work / f"{NAME}-{task}-teacher")
    for shape in shapes:
        scores: dict[str, list[float]] = {}
        for line in LINES:
            results = [read_json(place.work / _run_name(task, line, shape, seed) / "results.json") for seed in seeds]
            scores[line] = [one["score"] for one in results]
            if line == "both":
                scores["before_tuning"] = [one["stages"][0]["score"] for one in results]
                found["texts"] = results[0]["stages"][0]["texts"]
        found["shapes"][shape] = {
            "parameters": _parameters(place.work / _run_name(task, "both", shape, seeds[0])),
            "scores": {line: {"median": statistics.median(of), "by_seed": of} for line, of in scores.items()},
        }
    return found


def _parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def plot(found: dict[str, Any]) -> str:
    """Return the figure of a task as SVG: score against millions of parameters, a line for each way of training."""
    shapes = list(found["shapes"].values())
    curves = {
        title: [(one["parameters"] / 1e6, one["scores"][line]["median"]) for one in shapes]
        for line, title in LINES.items()
    }
    ends = (min(one["parameters"] for one in shapes), max(one["parameters"] for one in shapes))
    curves["the teacher"] = [(end / 1e6, found["teacher"]) for end in ends]
    return line_plot(curves, "parameters, millions", "score, %")


def as_table(found: dict[str, Any]) -> str:
    """Return the scores of a task as a table in Markdown: medians over the seeds."""
    header = ["shape", "parameters", LINES["tuned"], LINES["distilled"], "pre-training + distillation", LINES["both"]]
    rows = [
        [
            shape,
            f"{one['parameters'] / 1e6:.1f} M",
            *(f"{one['scores'][line]['median']:.1f}" for line in ("tuned", "distilled", "before_tuning", "both")),
        ]
        for shape, one in found["shapes"].items()
    ]
    rows.append(["teacher", f"{found['teacher_parameters'] / 1e6:.1f} M", f"{found['teacher']:.1f}", "", "", ""])
    return table(header, rows, figures=True)


if __name__ == "__main__":
    sys.exit(run(main))
