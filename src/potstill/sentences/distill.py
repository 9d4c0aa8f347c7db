"""Distil a sentence encoder: a teacher and a corpus of whole texts in, a sentence-transformers folder out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.arguments import RECIPE, recipe_text, recipe_values
from potstill.corpus import Corpus
from potstill.errors import PotstillError
from potstill.objective import objective_from
from potstill.recipe import DistillationArguments
from potstill.report.sentence_card import sentence_card
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.student import build_sentence_student
from potstill.sentences.trainer import SentenceTrainer, default_losses
from potstill.student.layers import AUTO
from potstill.student.vocabulary_pruning import prune_embeddings
from potstill.training.output import RESULTS, atomic_output, claimed_output_dir, run_results

MEASURED_BLOCKS = 64
"""Blocks of the corpus on whose texts the importance of heads, neurons and dimensions is measured."""

OF_LOSSES = ("alpha_ce", "alpha_mlm", "alpha_cos", "temperature", "soft_targets")
OF_LANGUAGE_MODELS = (
    *("masking", "mlm_probability", "mlm_smoothing", "short_block_size", "short_share"),
    *("teacher_weights", "teacher_mean", "fold_token_types", "max_size", "layers_seconds", "headless", *OF_LOSSES),
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
        teacher = SentenceEncoder.load(args.teachers[0])
        kept = corpus.cut_needed(teacher.tokenizer, args.teachers[0])
        if kept is not None:
            teacher.model, teacher.tokenizer = prune_embeddings(teacher.model, kept), corpus.tokenizer()
        args = copy.copy(args)
        args.layers = args.layers or "alternate"
        student = build_sentence_student(
            teacher,
            args.num_hidden_layers,
            args.layers,
            args.initialise,
            args.seed,
            args.hidden_size,
            args.num_attention_heads,
            args.intermediate_size,
            args.narrow_by,
            _some_texts(corpus, teacher),
        )
        args.losses = default_losses(teacher, student) if args.losses is None else args.losses
        recipe = recipe_text("distill", args, OF_LANGUAGE_MODELS)
        trainer = SentenceTrainer(student, corpus, args, teacher)
        trainer.recipe = recipe
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        _write_output(trainer, folder)
    return folder


def check_options(args: DistillationArguments) -> None:
    """Check the options that a sentence encoder has in another form than a language model, or has not.

    Raises:
        PotstillError: an option would be ignored, or the losses cannot be read.
    """
    for name in OF_LANGUAGE_MODELS:
        if getattr(args, name) != getattr(type(args), name):
            advice = "give the losses of an encoder with --losses" if name in OF_LOSSES else "leave it out"
            raise PotstillError(
                f"--{name} is for language models, but the corpus {args.corpus} holds whole texts for a sentence "
                f"encoder: {advice}."
            )
    if args.layers == AUTO:
        raise PotstillError(
            f"--layers {AUTO} measures language models, but the corpus {args.corpus} holds whole texts for a sentence "
            "encoder: give a rule such as alternate, or a list such as 0,3,6."
        )
    if args.losses is not None:
        objective_from(args.losses)


def _some_texts(corpus: Corpus, encoder: SentenceEncoder) -> Tensor:
    """Return (N, L) token ids, each row the beginning of a text. L is the median length of some texts.

    The texts are those of blocks that are spread evenly over the training split.
    """
    number = min(MEASURED_BLOCKS, len(corpus.train))
    chosen = torch.linspace(0, len(corpus.train) - 1, number).round().long().tolist()
    ids = corpus.train.__getitems__(chosen)["input_ids"]
    ids = ids[ids != encoder.tokenizer.pad_token_id]
    begins = (ids == encoder.tokenizer.cls_token_id).nonzero().flatten()
    lengths = torch.diff(begins, append=torch.tensor([len(ids)]))
    length = int(lengths.median())
    return ids[begins[lengths >= length][:, None] + torch.arange(length)]


def _write_output(trainer: SentenceTrainer, folder: Path) -> None:
    """Evaluate the trained encoder and write its folder. Every file is complete before it appears there."""
    results = run_results(trainer)
    if trainer.kept_embeddings is not None:
        results["teacher_embeddings"] = trainer.kept_embeddings
    if not trainer.args.should_save:
        return
    with atomic_output(folder) as staging:
        sections = [_held_out(results)]
        card = sentence_card(
            trainer.student, recipe_values(trainer.args, OF_LANGUAGE_MODELS), sections, results["changed_on_resume"]
        )
        trainer.student.save(staging, card)
        (staging / RECIPE).write_text(trainer.recipe, encoding="utf-8")
        (staging / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _held_out(results: dict[str, Any]) -> str:
    final, initial, cost = results["held_out"]["final"], results["held_out"]["initial"], results["cost"]
    sentences = [
        f"{cost['steps']:,} steps, {cost['tokens']:,} tokens, {cost['seconds']:,.0f} seconds on {cost['processes']} × "
        f"{cost['hardware']}."
    ]
    if final and "distance" in final:
        before = f" before training and {final['distance']:.4f} after" if initial else ""
        first = initial["distance"] if initial else final["distance"]
        sentences.append(
            f"On texts that were not used for training, 1 − cosine of the student's and the teacher's embeddings is "
            f"{first:.4f}{before}."
        )
    return "## Training\n\n" + " ".join(sentences)
