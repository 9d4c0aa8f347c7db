"""The verb `demo`: a complete distillation of the teacher and the text in the package, offline, on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from potstill.corpus import Corpus, prepare
from potstill.files import check_output_dir, check_output_file, write_text
from potstill.json_files import read_object
from potstill.pages.folders import find
from potstill.pages.report import page_of
from potstill.pages.texts import fill
from potstill.recipe import DistillationArguments
from potstill.report import html
from potstill.student import load_masked_lm
from potstill.training.distill import distill_language_model
from potstill.training.hardware import multiplies_bfloat16
from potstill.training.layer_search import blocks_to_read
from potstill.training.output import RESULTS
from potstill.wording import counted

SENTENCES = (
    "Paris is the capital of {mask}.",
    "He played {mask} for the national team.",
    "She was an American {mask} and actress.",
)
TIMED_SENTENCES = 40
BLOCK_SIZE = 128
LEARNING_RATE = 3e-4  # the student starts near its teacher, and a higher rate would first take it away


@dataclass
class _Row:
    """One line of the demo's table."""

    name: str
    parameters: int
    milliseconds: float
    loss: float
    accuracy: float

    def cells(self) -> list[str]:
        return [
            self.name,
            f"{self.parameters:,}",
            f"{4 * self.parameters:,}",
            f"{self.milliseconds:.2f}",
            f"{self.loss:.3f}",
            f"{self.accuracy:.1%}",
        ]


HEADER = ["", "parameters", "bytes", "ms/sentence", "loss", "accuracy"]
CAPTION = (
    "bytes: weights in float32 · ms: batch of one on this CPU, median · loss, accuracy: masked LM on held-out text"
)


def demo(output_dir: str = "demo", steps: int = 30, seed: int = 0, overwrite_output_dir: bool = False) -> Path:
    """Distil the embedded teacher to half its depth on an excerpt of Simple English Wikipedia, and show the result.

    The layers of the teacher that make the best start are found by measurement. Two students start from them. They see
    the same blocks under the same masks for the same number of steps. One learns from the teacher, the other from
    masked LM alone.

    Args:
        output_dir: Folder for the blocks, both students and report.html.
        steps: Optimiser steps of each student.
        seed: Seed of masks, order and dropout.
        overwrite_output_dir: Write into output_dir even if it is not empty.

    Returns:
        The student's folder.

    Raises:
        PotstillError: the output folder is not empty, or cannot be written.
    """
    folder = check_output_dir(output_dir, overwrite_output_dir)
    for name in ("blocks", "student", "without-teacher"):
        check_output_dir(folder / name, overwrite=True)
    report = check_output_file(folder / "report.html", "The report")
    console = Console()
    with as_file(files("potstill.demo") / "assets") as assets:
        teacher_folder = str(assets / "teacher")
        console.rule("1 · prepare: text → blocks")
        corpus = prepare(
            text=[str(assets / "simple-wikipedia.jsonl.gz")],
            tokenizer=teacher_folder,
            output_dir=str(folder / "blocks"),
            block_size=BLOCK_SIZE,
            validation_fraction=0.1,
            overwrite_output_dir=overwrite_output_dir,
        )
        console.print(f"{len(corpus.train):,} blocks to train on, {len(corpus.validation):,} held out")
        common: dict[str, Any] = {
            "teacher": teacher_folder,
            "corpus": str(corpus.folder),
            "max_steps": steps,
            "per_device_train_batch_size": 16,
            "learning_rate": LEARNING_RATE,
            "masking": "uniform",  # as in the evaluation: such short training would not make up for the difference
            "eval_strategy": "no",
            # The blocks on which the layers are chosen are left out of the evaluation.
            "max_eval_samples": len(corpus.validation) - blocks_to_read(BLOCK_SIZE),
            "save_strategy": "no",
            "logging_steps": max(1, steps // 15),
            "seed": seed,
            "use_cpu": True,
            "bf16": multiplies_bfloat16(),
            "overwrite_output_dir": overwrite_output_dir,
        }
        console.rule("2 · distill: teacher → student")
        search: dict[str, Any] = {"layers": "auto", "layers_seconds": 120}
        student = distill_language_model(DistillationArguments(output_dir=str(folder / "student"), **common, **search))
        found: dict[str, Any] = {"layers": _listed_layers(read_object(student / RESULTS, "The results"))}
        console.rule("3 · the same student without the teacher: masked LM alone")
        alone = distill_language_model(
            DistillationArguments(
                output_dir=str(folder / "without-teacher"), alpha_ce=0, alpha_cos=0, **common, **found
            )
        )
        console.rule("4 · comparison")
        _show(console, corpus, load_masked_lm(teacher_folder), student, alone, report)
    console.print(f"student: {student}\nreport:  {report}", markup=False)
    return student


def _show(console: Console, corpus: Corpus, teacher: PreTrainedModel, student: Path, alone: Path, report: Path) -> None:
    """Print the table and the filled masks, and write the report."""
    models = {"teacher": teacher, "student": load_masked_lm(str(student)), "alone": load_masked_lm(str(alone))}
    results = {
        name: read_object(path / RESULTS, "The results") for name, path in (("student", student), ("alone", alone))
    }
    initial, final = results["student"]["held_out"]["initial"], results["student"]["held_out"]["final"]
    final_alone = results["alone"]["held_out"]["final"]
    milliseconds = _milliseconds(models, corpus)
    size = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    rows = [
        _Row("teacher", size["teacher"], milliseconds["teacher"], final["teacher_loss"], final["teacher_accuracy"]),
        _Row("student, initialised", size["student"], milliseconds["student"], initial["loss"], initial["accuracy"]),
        _Row("student, distilled", size["student"], milliseconds["student"], final["loss"], final["accuracy"]),
        _Row(
            "student, no teacher",
            size["alone"],
            milliseconds["alone"],
            final_alone["loss"],
            final_alone["accuracy"],
        ),
    ]
    shown = Table(box=SIMPLE_HEAD, caption=CAPTION, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(HEADER):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row.cells())
    console.print(shown)
    filled = [
        [
            sentence.format(mask="[MASK]"),
            *(fill(models[name], corpus.tokenizer(), sentence) for name in ("teacher", "student")),
        ]
        for sentence in SENTENCES
    ]
    answers = Table("", "teacher", "student", box=SIMPLE_HEAD)
    for line in filled:
        answers.add_row(*(cell.replace("[", r"\[") for cell in line))
    console.print(answers)
    write_text(report, _report(rows, filled, results, [student, alone]))


def _listed_layers(results: dict[str, Any]) -> str:
    """Return the teacher's layers that the search of a run chose, as an option of `distill`."""
    return ",".join(map(str, results["layer_search"]["tried"][0]["layers"]))


def _milliseconds(models: dict[str, PreTrainedModel], corpus: Corpus) -> dict[str, float]:
    """Return the median time of one sentence. The models take turns, so that a busy machine slows all of them."""
    tokenizer = corpus.tokenizer()
    sentences = [
        tokenizer.decode(corpus.validation[block]["input_ids"][1:25], skip_special_tokens=True)
        for block in range(min(TIMED_SENTENCES, len(corpus.validation)))
    ]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for i, sentence in enumerate(sentences * 2):
            inputs = tokenizer(sentence, return_tensors="pt", return_token_type_ids=False)
            for name, model in models.items():
                started = time.perf_counter()
                model(**inputs)
                if i >= len(sentences):  # the first round is warm-up
                    seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def _report(rows: list[_Row], filled: list[list[str]], results: dict[str, Any], runs: Sequence[Path]) -> str:
    """Return the HTML report of the demo: its own tables, and then what `potstill report` shows of both runs."""
    cost, alone = results["student"]["cost"], results["alone"]["cost"]
    what = (
        f"{counted(cost['steps'], 'step')}, {cost['tokens']:,} tokens, {cost['seconds']:.0f} seconds with the teacher "
        f"and {alone['seconds']:.0f} without, on {cost['hardware']}. Held-out: masked LM on articles that "
        "neither teacher nor students trained on. Both students started from the teacher's layers "
        f"{_listed_layers(results['student'])}, counted from 0: the best of "
        f"{len(results['student']['layer_search']['tried'])} choices that were measured before training."
    )
    table = html.table(HEADER, [row.cells() for row in rows])
    first = {
        "The result": [html.paragraph(what), table, html.paragraph(CAPTION)],
        "Filling the blank": [html.table(["", "teacher", "student"], filled, texts=True)],
    }
    return page_of(find([str(run) for run in runs]), "potstill demo: a 12-layer BERT distilled to 6 layers", first)
