"""Common parts of the scripts that train: options of a run, and its results and cost."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from potstill.bench.flops import step_flops
from potstill.corpus import Corpus
from potstill.corpus.masking import masked_per_block
from potstill.training.compatibility import objective_of
from reproduce.common import Place, read_json, shortened
from reproduce.runs import Done, Job

HISTORY = "sessions.json"
"""File in the folder of a teacher with the cost and the results of each session of its training."""


def running_options(place: Place) -> dict[str, Any]:
    """Return the options of every training: precision for the device, and epochs enough that only the time ends it."""
    options: dict[str, Any] = {"num_train_epochs": 1000, "report_to": "none", "save_total_limit": 1}
    if place.gpus:
        options |= {"bf16": True, "torch_compile": True, "dataloader_num_workers": 2}
    return options


def distilling(
    name: str, place: Place, teacher: Path, corpus: Path, minutes: float, distributed: bool = True, **options: Any
) -> Job:
    """Return the job of a distillation.

    Args:
        name: name of the run.
        place: folders and GPUs of the script.
        teacher: folder of the teacher.
        corpus: folder of blocks.
        minutes: GPU-minutes, compilation included.
        distributed: whether all GPUs share the run.
        options: options of `potstill distill`; they override the defaults here.
    """
    defaults = running_options(place) | {
        "per_device_train_batch_size": 128,
        "logging_steps": 100,
        "eval_steps": 2000,
        "max_eval_samples": 1024,
        "save_steps": 5000,
    }
    return Job(
        name,
        "distill",
        {"teacher": teacher, "corpus": corpus} | defaults | options,
        minutes,
        distributed,
        place.more,
    )


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """Add the options for the number of tokens in a step and in a block."""
    parser.add_argument(
        "--short_block_size", type=int, default=128, help="tokens of a block in most steps, after cutting"
    )
    parser.add_argument(
        "--short_share", type=float, default=0.9, help="share of the steps with such short blocks; 0 for none"
    )
    parser.add_argument("--batch_tokens", type=int, default=32768, help="tokens per step on each GPU")


def cut_short(corpus: Path, options: Any) -> dict[str, Any]:
    """Return the options of potstill's verb that cut blocks; none if the blocks of the corpus are short already."""
    if options.short_share == 0 or Corpus.open(corpus).train.block_size <= options.short_block_size:
        return {}
    return {"short_block_size": options.short_block_size, "short_share": options.short_share}


def lengths(stage: dict[str, Any]) -> str:
    """Return the block lengths of a training, for a table."""
    text = f"blocks of {stage['block_size']} tokens"
    if stage.get("short_block_size"):
        text += f", {stage['short_block_size']} in {stage['short_share']:.0%} of the steps"
    return text


def figures(done: Done) -> dict[str, Any]:
    """Return the results and the cost of a training. Its FLOPs are counted from the shapes of the models."""
    results = read_json(done.folder / "results.json")
    cost, processes = results["cost"], results["cost"]["processes"]
    speeds = [entry["tokens_per_second"] for entry in results["log_history"] if "tokens_per_second" in entry]
    return {
        "held_out": results["held_out"]["final"],
        "held_out_at_start": results["held_out"]["initial"],
        "parameters": results["parameters"],
        "cost": {
            "steps": cost["steps"],
            "tokens": cost["tokens"],
            "gpu_minutes": round(cost["seconds"] * processes / 60, 3),
            "tokens_per_second": round(statistics.median(speeds), 1) if speeds else None,
            "flops": count_flops(done.folder, results),
            "hardware": cost["hardware"],
            **done.cost,
        },
    }


def count_flops(folder: Path, results: dict[str, Any]) -> float:
    """Return the model FLOPs of a training from its recipe and its tokens.

    For a grown model, each part of the training counts with its own depth.
    """
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    block_size = Corpus.open(recipe["corpus"]).train.block_size
    student = shape_of(folder)
    objective = objective_of(recipe)
    teacher = shape_of(recipe["teacher"]) if "teacher" in recipe else None
    total = 0.0
    short = recipe.get("short_block_size")
    shares = {block_size: 1.0}
    if short is not None:
        shares = {short: recipe["short_share"], block_size: 1 - recipe["short_share"]}
    for depth, tokens in _tokens_by_depth(recipe, results, student.config.num_hidden_layers):
        model = shape_of(folder, depth)
        for size, share in shares.items():
            masked = masked_per_block(size, recipe["mlm_probability"])
            total += share * tokens * step_flops(model, teacher, objective, size, masked).step
    return total


def shape_of(folder: str | Path, depth: int | None = None) -> PreTrainedModel:
    """Return a masked-LM model without weights, with the shape of the model in a folder, or with another depth."""
    config = AutoConfig.from_pretrained(folder)
    if depth is not None:
        config.num_hidden_layers = depth
    with torch.device("meta"):
        return AutoModelForMaskedLM.from_config(config)


def _tokens_by_depth(recipe: dict[str, Any], results: dict[str, Any], depth: int) -> list[tuple[int, float]]:
    """Return the tokens read at each depth. The step of a growth is only known to within two lines of the log."""
    tokens, steps = results["cost"]["tokens"], max(results["cost"]["steps"], 1)
    if not recipe.get("grow"):
        return [(depth, tokens)]
    depths = [int(part) for part in str(recipe["grow"]).split(",")]
    given = recipe.get("grow_at")
    count = len(depths) - 1
    shares = [float(part) for part in str(given).split(",")] if given else [(i + 1) / count / 2 for i in range(count)]
    log = [(entry["step"], entry["progress"]) for entry in results["log_history"] if "progress" in entry]
    grown = [max((step for step, progress in log if progress <= share), default=0) for share in shares]
    ends = [*grown, results["cost"]["steps"]]
    starts = [0, *grown]
    return [(d, tokens * (end - start) / steps) for d, start, end in zip(depths, starts, ends, strict=True)]


def corpus_figures(folder: Path) -> dict[str, Any]:
    """Return the sources and sizes of a corpus, without local folders."""
    manifest = Corpus.open(folder).manifest
    return {
        "block_size": manifest.block_size,
        "sources": [shortened(source.name) for source in manifest.sources],
        "documents": {name: split.documents for name, split in manifest.splits.items()},
        "tokens": {name: split.tokens for name, split in manifest.splits.items()},
    }


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """Return the training sessions of a teacher from `reproduce.teacher`; an empty list if they are not recorded."""
    return read_json(folder / HISTORY)["sessions"] if (folder / HISTORY).is_file() else []


def model_figures(folder: Path) -> dict[str, Any]:
    """Return the name and the shape of a model, from its config."""
    config = AutoConfig.from_pretrained(folder)
    return {
        "name": folder.resolve().name,
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
    }
