"""Gupta et al. 2015: training in 16-bit fixed point; and task models trained for their int8 and 4-bit exports.

    python -m reproduce.papers.precision --task_data glue/ --tasks sst2 mrpc intents.yaml
    python -m reproduce.papers.precision --only fixed_point --steps 2000
    python -m reproduce.papers.precision --only masked_lm --text text/part-00.jsonl --check_text text/part-02.jsonl

**Fixed point**: the same small BERT is pre-trained from random weights in float32, and in numbers of 16 bits with the
point in several places, rounded to the nearest and stochastically. Without `--text` it reads the excerpt of Simple
English Wikipedia that comes with the package.

**Masked LM**: the embedded language model, 12 × 128, is exported in int8 and in 4 bits, and so is a copy that it taught
for each of the two. `--text` teaches, and the exports guess hidden tokens of `--check_text`.

**Integers**: `--model` is fine-tuned on each task and exported in int8 and in 4 bits. It is then trained on for each of
the two, taught by itself in float32, and exported again. The control is trained on just as long, without
`--quantization`. Exports run on the CPU. A task is one of GLUE's, in `--task_data`, or a file that declares your own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import potstill
from potstill.report.markdown import table
from potstill.report.plots import line_plot
from potstill.tasks.load import TaskDataAbsentError, find_split
from potstill.tasks.own import is_task_file
from potstill.tasks.registry import find_task
from reproduce.common import Place, new_parser, place_of, read_json, read_result, run, write_result
from reproduce.runs import Job, run_job, run_jobs

NAME = "precision"
ASSETS = Path(potstill.__file__).parent / "demo" / "assets"
FRACTIONS = (8, 10, 12, 14)
"""Bits after the point of the weights; the numbers have 16 bits in all."""

OTHERS = "activations: Q6.10, gradients: Q-8.24"
"""The gradient of a mean over many tokens is small, so its 16 bits begin far behind the point."""

MASKED_LM, CHECKED = "masked_lm", 400
"""Name of the part with a language model, and the lines of text that its exports are scored on."""

PARTS = ("fixed_point", "masked_lm", "tasks")
BITS = {"int8": 8, "int4": 4}
TRAINED = {"float": "as fine-tuned", "control": "trained on in float32"}


def new_options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = new_parser(__doc__, runs_per_gpu=4)
    parser.add_argument("--only", choices=("fixed_point", "masked_lm", "integers"), help="do one part alone")
    parser.add_argument("--text", nargs="+", help="text to pre-train on, as for `potstill prepare`")
    parser.add_argument("--check_text", help="other text, whose hidden tokens are guessed")
    parser.add_argument("--language_model_steps", type=int, default=1000, help="steps of the masked LM (1000)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of a pre-training (2000)")
    parser.add_argument("--fractions", nargs="+", type=int, default=FRACTIONS, help="bits after the point")
    parser.add_argument("--pretraining_rate", type=float, default=5e-4, help="its learning rate (5e-4)")
    parser.add_argument("--model", default=str(ASSETS / "teacher"), help="encoder to fine-tune; the embedded one")
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data")
    parser.add_argument("--tasks", nargs="+", default=["sst2"], help="tasks of GLUE or files that declare tasks (sst2)")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each task (3)")
    parser.add_argument("--tuning_rate", type=float, default=5e-4, help="learning rate of the fine-tuning (5e-4)")
    parser.add_argument("--epochs", type=float, help="its epochs; default: the task's")
    parser.add_argument("--quantized_rate", type=float, default=2e-4, help="learning rate of what follows (2e-4)")
    parser.add_argument("--quantized_epochs", type=float, default=2, help="its epochs (2)")
    parser.add_argument("--max_train_samples", type=int, help="training rows of a task; default: all")
    return parser


def main(argv: list[str]) -> None:
    """Do the runs of both parts, and write the figures, the plot and the tables."""
    options, more = new_options().parse_known_args(argv)
    place = place_of(options, more)
    figures = {key: of for key, of in (read_result(place.results, NAME) or {}).items() if key in PARTS}
    if options.only in (None, "fixed_point"):
        figures["fixed_point"] = fixed_point(options, place)
        write_result(place, NAME, figures)
        print(fixed_point_table(figures["fixed_point"]))
    if options.only in (None, "masked_lm"):
        if options.text and options.check_text:
            figures["masked_lm"] = masked_lm(options, place)
            write_result(place, NAME, figures)
            print(integers_table(figures["masked_lm"]))
        else:
            print(
                "precision: masked LM is left out: name text with --text, and other text with --check_text.", flush=True
            )
    tasks = [task for task in options.tasks if _has_data(task, options.task_data)]
    if options.only in (None, "integers") and tasks:
        figures["tasks"] = integers(options, place, tasks)
        write_result(place, NAME, figures)
        print(integers_table(figures["tasks"]))


def fixed_point(options: Namespace, place: Place) -> dict[str, Any]:
    """Pre-train in each kind of numbers, draw the losses, and return them."""
    text = options.text or [ASSETS / "simple-wikipedia.jsonl.gz"]
    blocks = _blocks("precision-blocks", text, place)
    kinds = {"float32": None} | {
        f"{rounding} {16 - fraction}.{fraction}": f"{{weights: Q{16 - fraction}.{fraction}, {OTHERS}, "
        f"rounding: {rounding}}}"
        for rounding in ("nearest", "stochastic")
        for fraction in options.fractions
    }
    sizes = {"num_hidden_layers": 3, "hidden_size": 128, "max_position_embeddings": 128, "dropout": 0}
    every = max(1, options.steps // 20)
    length = {"max_steps": options.steps, "per_device_train_batch_size": 32, "warmup_steps": 0.05}
    length |= {"learning_rate": options.pretraining_rate, "eval_steps": every, "logging_steps": every}
    common = {"corpus": blocks, "save_strategy": "no", "report_to": "none", **sizes, **length}
    common |= {"use_cpu": None if place.gpus else True}
    jobs = [
        Job(
            f"precision-{name.replace(' ', '-')}",
            "pretrain",
            common | {"fixed_point": numbers},
            distributed=False,
            more=place.more,
        )
        for name, numbers in kinds.items()
    ]
    curves: dict[str, Any] = {}
    saturated: dict[str, Any] = {}
    for name, done in zip(kinds, run_jobs(jobs, place), strict=True):
        results = read_json(done.folder / "results.json")
        curves[name] = [[entry["step"], entry["eval_loss"]] for entry in results["log_history"] if "eval_loss" in entry]
        saturated[name] = results.get("fixed_point", {}).get("saturated")
    place.results.mkdir(parents=True, exist_ok=True)
    path = place.results / "fixed-point.svg"
    path.write_text(line_plot(curves, "steps", "held-out masked-LM loss"), encoding="utf-8")
    print(f"wrote {path}", flush=True)
    return {"learning_rate": options.pretraining_rate, "others": OTHERS, "curves": curves, "saturated": saturated}


def fixed_point_table(figures: dict[str, Any]) -> str:
    """Return the losses at some steps, and the largest share of values out of range, as Markdown."""
    curves = figures["curves"]
    points = next(iter(curves.values()))
    places = sorted({round(share * (len(points) - 1)) for share in (0, 0.25, 0.5, 1)})
    rows = [
        [name, *(f"{curve[place][1]:.2f}" for place in places), _most(figures["saturated"][name])]
        for name, curve in curves.items()
    ]
    return table(["weights", *(f"step {points[place][0]:,}" for place in places), "out of range, at most"], rows)


def _most(saturated: dict[str, float] | None) -> str:
    return "" if not saturated else f"{max(saturated.values()):.2%} ({max(saturated, key=saturated.__getitem__)})"


def integers(options: Namespace, place: Place, tasks: list[str]) -> dict[str, Any]:
    """Fine-tune, train on for integers, export, and return the scores by task."""
    both = [(task, seed) for task in tasks for seed in range(1, options.seeds + 1)]

    def tuning(task: str, seed: int, trained: str) -> Job:
        values: dict[str, Any] = {
            "model": options.model,
            "seed": seed,
            **_of_task(task, options.task_data, "task_data"),
        }
        values |= {"learning_rate": options.tuning_rate, "num_train_epochs": options.epochs, "report_to": "none"}
        values |= {"max_train_samples": options.max_train_samples, "use_cpu": None if place.gpus else True}
        if trained != "float":
            whole = place.work / _name(task, seed, "float")
            values |= {"model": whole, "teacher": whole, "without_teacher_too": False}
            values |= {"learning_rate": options.quantized_rate, "num_train_epochs": options.quantized_epochs}
            values |= {"quantization": trained if trained in BITS else None}
        return Job(_name(task, seed, trained), "finetune", values, distributed=False, more=place.more)

    run_jobs([tuning(task, seed, "float") for task, seed in both], place)
    later = [tuning(task, seed, trained) for task, seed in both for trained in ("control", *BITS)]
    run_jobs(later, place)
    exports = [
        _export(
            f"{_name(task, seed, trained)}-{integers}",
            place.work / _name(task, seed, trained),
            integers,
            _of_task(task, options.task_data, "check_data"),
        )
        for task, seed in both
        for trained, integers in _exported()
    ]
    run_jobs(exports, place)
    seeds = range(1, options.seeds + 1)
    return {_short(task): [_figures(place, task, seeds, *of) for of in _exported()] for task in tasks}


def masked_lm(options: Namespace, place: Place) -> dict[str, Any]:
    """Teach the embedded language model by itself for integers, export, and return the accuracies at hidden tokens."""
    teacher = ASSETS / "teacher"
    blocks = _blocks("precision-text", options.text, place)
    common = {
        "teacher": teacher,
        "corpus": blocks,
        "num_hidden_layers": read_json(teacher / "config.json")["num_hidden_layers"],
    }
    # Soft targets alone: their gradient is 0 where nothing is rounded, so nothing else moves the model.
    common |= {"layers": "first", "alpha_mlm": 0, "learning_rate": 1e-4, "max_steps": options.language_model_steps}
    common |= {"per_device_train_batch_size": 64, "eval_steps": max(1, options.language_model_steps // 4)}
    common |= {"save_strategy": "no", "report_to": "none", "use_cpu": None if place.gpus else True}
    jobs = [
        Job(
            _name(MASKED_LM, 1, trained),
            "distill",
            common | {"quantization": trained if trained in BITS else None},
            distributed=False,
            more=place.more,
        )
        for trained in ("control", *BITS)
    ]
    run_jobs(jobs, place)
    data = {"check_data": options.check_text, "max_check_samples": CHECKED}
    exports = [
        _export(
            f"{_name(MASKED_LM, 1, trained)}-{integers}",
            teacher if trained == "float" else place.work / _name(MASKED_LM, 1, trained),
            integers,
            data,
        )
        for trained, integers in _exported()
    ]
    run_jobs(exports, place)
    return {MASKED_LM: [_figures(place, MASKED_LM, range(1, 2), *of) for of in _exported()]}


def _blocks(name: str, text: Any, place: Place) -> Path:
    values = {"text": text, "tokenizer": ASSETS / "teacher", "block_size": 128, "validation_fraction": 0.05}
    return run_job(Job(name, "prepare", values, distributed=False), place).folder


def _export(name: str, model: Path, integers: str, data: dict[str, Any]) -> Job:
    values = {"model": model, "format": "onnx-int8", "weight_bits": BITS[integers]}
    values |= {"tolerance": 100, "min_agreement": 0, "score_tolerance": 1}
    return Job(name, "export", values | data, distributed=False)


def _exported() -> Iterable[tuple[str, str]]:
    """Yield how a model was trained, and as what it is exported."""
    for integers in BITS:
        for trained in ("float", "control", integers):
            yield trained, integers


def _figures(place: Place, task: str, seeds: range, trained: str, integers: str) -> dict[str, Any]:
    written = [
        read_json(place.work / f"{_name(task, seed, trained)}-{integers}" / "potstill_export.json")["scores"]
        for seed in seeds
    ]
    before, after = ([of[side]["score"] for of in written] for side in ("before", "after"))
    lost = [old - new for old, new in zip(before, after, strict=True)]
    whole = [
        read_json(place.work / f"{_name(task, seed, 'float')}-{integers}" / "potstill_export.json")["scores"]["before"]
        for seed in seeds
    ]
    lost_of_whole = [old["score"] - new for old, new in zip(whole, after, strict=True)]
    return {
        "trained": trained,
        "exported": integers,
        "float32": statistics.median(before),
        "export": statistics.median(after),
        "lost": statistics.median(lost),
        "lost_by_seed": lost,
        "lost_of_the_float_model": statistics.median(lost_of_whole),
        "same_answers": statistics.median(of["agreement"]["same"] for of in written),
    }


def integers_table(tasks: dict[str, Any]) -> str:
    """Return the scores of all tasks as Markdown."""
    rows = [
        [
            task,
            row["exported"],
            TRAINED[row["trained"]] if row["trained"] not in BITS else "trained on for it",
            f"{row['float32']:.2f}",
            f"{row['export']:.2f}",
            f"{row['lost']:+.2f} ({min(row['lost_by_seed']):+.2f} to {max(row['lost_by_seed']):+.2f})",
            f"{row['lost_of_the_float_model']:+.2f}",
            f"{row['same_answers']:.2%}",
        ]
        for task, found in tasks.items()
        for row in found
    ]
    head = ["task", "export", "model", "float32", "exported", "lost by the export", "below the fine-tuned model"]
    return table([*head, "same answers"], rows)


def _has_data(task: str, data: Path | None) -> bool:
    if is_task_file(task):
        return True
    try:
        if data is None:
            raise TaskDataAbsentError("--task_data names no folder of its data.")
        declared: Any = find_task(task)
        find_split(declared, "train", data)
    except TaskDataAbsentError as error:
        print(f"precision: {task} is left out: {error}", flush=True)
        return False
    return True


def _of_task(task: str, data: Path | None, option: str) -> dict[str, Any]:
    return {"task": task} | ({} if is_task_file(task) else {option: data})


def _short(task: str) -> str:
    return Path(task).stem if is_task_file(task) else task


def _name(task: str, seed: int, trained: str) -> str:
    return f"precision-{_short(task)}-{seed}-{trained}"


if __name__ == "__main__":
    sys.exit(run(main))
