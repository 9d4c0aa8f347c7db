"""Distil a sentence encoder: a teacher and a corpus of whole texts in, a sentence-transformers folder out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from potstill.arguments import RECIPE, recipe_text
from potstill.corpus import Corpus, ShuffledSampler
from potstill.errors import PotstillError
from potstill.objective import OF_DISTILBERT, objective_from
from potstill.recipe import DistillationArguments
from potstill.report.averaged_weights import averaged_section
from potstill.report.held_out import layer_search_section
from potstill.report.model_card import size_section
from potstill.report.sentence_card import sentence_card
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.layer_search import find_encoder_layers
from potstill.sentences.new_student import choose_sentence_sizes, load_sentence_teacher, new_sentence_student
from potstill.sentences.trainer import SentenceTrainer, check_run, default_losses, row_format
from potstill.student.layers import AUTO
from potstill.student.sizing import Estimate
from potstill.training.chosen_layers import decide_by
from potstill.training.compile_workers import start_compile_workers
from potstill.training.hub import upload
from potstill.training.layer_search import Choices, LayerSearch
from potstill.training.output import RESULTS, atomic_output, claimed_output_dir, compared_size, run_results
from potstill.wording import counted

OF_LANGUAGE_MODELS = (
    *("masking", "mlm_probability", "mlm_smoothing", "short_block_size", "short_share", "short_first"),
    *(
        "teacher_weights",
        "teacher_mean",
        "fold_token_types",
        "headless",
        "dropout",
        "fp8",
        "quantization",
        *OF_DISTILBERT,
    ),
)
"""Options of `distill` that mean nothing for a sentence encoder."""


def distill_sentences(args: DistillationArguments) -> Path:
    """Distil a sentence encoder into a shallower or narrower one, and write a folder that `SentenceTransformer` loads.

    Args:
        args: at least `teacher`, `corpus` and `output_dir`.

    Returns:
        The student's folder.

    Raises:
        PotstillError: bad input, reported before anything is written if possible.
        TrainingInterrupted: a signal ended training. It can be resumed from the checkpoint.
    """
    if len(args.teachers) != 1:
        raise PotstillError("A sentence encoder learns from one teacher: name one with --teacher.")
    check_options(args)
    with claimed_output_dir(args) as folder:
        corpus = Corpus.open(args.corpus or "")
        start_compile_workers(args)
        teacher = load_sentence_teacher(args.teachers[0], corpus)
        sizes, estimate = choose_sentence_sizes(args, teacher, corpus)
        args = copy.copy(args)
        args.layers = args.layers or "alternate"
        args, search = _decide_layers(args, teacher, corpus, sizes)
        student = new_sentence_student(args, teacher, corpus, sizes)
        args.losses = default_losses(teacher, student) if args.losses is None else args.losses
        recipe = recipe_text("distill", args, OF_LANGUAGE_MODELS)
        trainer = SentenceTrainer(student, corpus, args, teacher)
        trainer.recipe = recipe
        trainer.layer_search = None if search is None else search.record()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        _write_output(trainer, folder, estimate)
        upload(args, trainer.hub_model_id, folder)
    return folder


def check_options(args: DistillationArguments) -> None:
    """Check the options that a sentence encoder has in another form than a language model, or has not.

    Raises:
        PotstillError: an option would be ignored, or the losses cannot be read.
    """
    for name in OF_LANGUAGE_MODELS:
        if getattr(args, name) != getattr(type(args), name):
            advice = "give the losses of an encoder with --losses" if name in OF_DISTILBERT else "leave it out"
            raise PotstillError(
                f"--{name} is for language models, but the corpus {args.corpus} holds whole texts for a sentence "
                f"encoder: {advice}."
            )
    if args.layers_seconds != type(args).layers_seconds and args.layers != AUTO:
        raise PotstillError("--layers_seconds limits the time of --layers auto: add --layers auto, or leave it out.")
    if args.losses is not None:
        objective_from(args.losses)


def _decide_layers(
    args: DistillationArguments,
    teacher: SentenceEncoder,
    corpus: Corpus,
    sizes: dict[str, int | None],
) -> tuple[DistillationArguments, LayerSearch | None]:
    """Do what `decide_layers` does, for a sentence encoder."""

    def check() -> None:
        alike = copy.copy(args)
        any_layers = next(Choices(teacher.model, sizes["num_hidden_layers"]).of_rules())
        alike.layers, alike.initialise = ",".join(map(str, any_layers)), "random"
        student = new_sentence_student(alike, teacher, corpus, sizes)
        objective = objective_from(default_losses(teacher, student) if args.losses is None else args.losses)
        check_run(student, teacher, corpus, objective, args)
        ShuffledSampler(len(corpus.train), args.blocks_per_step, args.seed)

    def search(report: Callable[[str], None]) -> LayerSearch:
        teacher.to(args.device)
        size, most = args.per_device_eval_batch_size, args.max_eval_samples
        rows, depth = row_format(corpus, teacher), sizes["num_hidden_layers"]
        return find_encoder_layers(teacher, corpus, rows, depth, args.layers_seconds, size, most, report)

    return decide_by(args, teacher.model, corpus, check, search)


def _write_output(trainer: SentenceTrainer, folder: Path, estimate: Estimate | None) -> None:
    """Evaluate the trained encoder and write its folder. Every file is complete before it appears there."""
    results = run_results(trainer)
    if trainer.kept_embeddings is not None:
        results["teacher_embeddings"] = trainer.kept_embeddings
    if not trainer.args.should_save:
        return
    with atomic_output(folder) as staging:
        recipe = yaml.safe_load(trainer.recipe)  # the trainer's own options have what it sets for itself too
        trainer.student.save(staging)
        if estimate is not None:
            results["max_size"] = compared_size(staging, estimate)
        sections = [
            *(_held_out(results), averaged_section(results), size_section(recipe, results)),
            layer_search_section(results["layer_search"]),
        ]
        card = sentence_card(trainer.student, recipe, sections, results)
        (staging / "README.md").write_text(card, encoding="utf-8")
        (staging / RECIPE).write_text(trainer.recipe, encoding="utf-8")
        (staging / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _held_out(results: dict[str, Any]) -> str:
    final, initial, cost = results["held_out"]["final"], results["held_out"]["initial"], results["cost"]
    sentences = [
        f"{counted(cost['steps'], 'step')}, {cost['tokens']:,} tokens, {cost['seconds']:,.0f} seconds on "
        f"{cost['processes']} × {cost['hardware']}."
    ]
    if final and "distance" in final:
        before = f" before training and {final['distance']:.4f} after" if initial else ""
        first = initial["distance"] if initial else final["distance"]
        sentences.append(
            f"On texts that were not used for training, 1 − cosine of the student's and the teacher's embeddings is "
            f"{first:.4f}{before}."
        )
    return "## Training\n\n" + " ".join(sentences)
