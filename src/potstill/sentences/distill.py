"""Distil a sentence encoder: a teacher and a corpus of whole texts in, a sentence-transformers folder out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.arguments import RECIPE, recipe_text, recipe_values
from potstill.corpus import Corpus
from potstill.errors import PotstillError
from potstill.recipe import DistillationArguments
from potstill.report.sentence_card import sentence_card
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.student import build_sentence_student
from potstill.sentences.trainer import SentenceTrainer
from potstill.student.vocabulary_pruning import prune_embeddings
from potstill.training.output import RESULTS, atomic_output, claimed_output_dir, run_results


def distill_sentences(args: DistillationArguments) -> Path:
    """Distil a sentence encoder into a shallower one, and write a folder that `SentenceTransformer` loads.

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
    with claimed_output_dir(args) as folder:
        corpus = Corpus.open(args.corpus or "")
        teacher = SentenceEncoder.load(args.teachers[0])
        kept = corpus.cut_needed(teacher.tokenizer, args.teachers[0])
        if kept is not None:
            teacher.model, teacher.tokenizer = prune_embeddings(teacher.model, kept), corpus.tokenizer()
        student = build_sentence_student(
            teacher, args.num_hidden_layers, args.layers or "alternate", args.initialise, args.seed
        )
        recipe = recipe_text("distill", args)
        trainer = SentenceTrainer(student, corpus, args, teacher)
        trainer.recipe = recipe
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        _write_output(trainer, folder)
    return folder


def _write_output(trainer: SentenceTrainer, folder: Path) -> None:
    """Evaluate the trained encoder and write its folder. Every file is complete before it appears there."""
    results = run_results(trainer)
    if not trainer.args.should_save:
        return
    with atomic_output(folder) as staging:
        sections = [_held_out(results)]
        card = sentence_card(trainer.student, recipe_values(trainer.args), sections, results["changed_on_resume"])
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
