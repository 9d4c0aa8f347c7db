"""The parts of a training: student, teachers, corpus, tokenizer and objective. Parts given by name are opened."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import Corpus, load_tokenizer
from potstill.objective import Ensemble, Objective
from potstill.recipe import DistillationArguments, Recipe
from potstill.student import family_of, is_headless, load_teacher, prune_embeddings, takes_token_types
from potstill.student.padded_vocabulary import limit_vocabulary
from potstill.student.weights import check_finite
from potstill.training.compatibility import check_fit, check_launch, check_one_tokenizer, ensemble_of, objective_of
from potstill.training.encoder_options import check_no_masking, check_no_sentence_options, check_options, default_losses
from potstill.training.teachers import name_of_teacher

Teacher: TypeAlias = PreTrainedModel | str


@dataclass(frozen=True)
class Parts:
    """The parts that `DistillationTrainer` needs. They have been checked to fit together.

    Attributes:
        student: the model to train.
        teachers: the models to learn from; none to train without one.
        ensemble: how several teachers are averaged.
        corpus: the prepared text.
        tokenizer: saved with the student.
        objective: the loss to minimise.
        args: options of the run, adjusted to the other parts.
    """

    student: PreTrainedModel
    teachers: tuple[PreTrainedModel, ...]
    ensemble: Ensemble
    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    objective: Objective
    args: Recipe


def gather_parts(
    student: PreTrainedModel,
    corpus: Corpus | str | Path,
    args: Recipe,
    teacher: Teacher | Sequence[Teacher] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    objective: Objective | None = None,
) -> Parts:
    """Open the parts that are given by name, and check that all parts fit together. The arguments are not changed.

    Args:
        student: a model of a known family.
        corpus: folder written by `prepare`, or an open `Corpus`.
        args: options of the run.
        teacher: a model, a folder, or a hub name; or a sequence of them.
        tokenizer: saved with the student; by default the tokenizer of the corpus.
        objective: used in place of the losses in `args`.

    Raises:
        PotstillError: a part does not exist, or does not fit.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    given = [] if teacher is None else [teacher] if isinstance(teacher, Teacher) else list(teacher)
    ensemble = ensemble_of(args, len(given))
    _check_teacher_tokenizers(given, corpus, tokenizer)
    headless = is_headless(student)
    teachers = tuple(_opened(one, corpus, headless) for one in given)
    tokenizer = tokenizer or corpus.tokenizer(takes_token_types(student.config))
    corpus.check_tokenizer(tokenizer, "the tokenizer given")
    check_launch(args)
    check_no_sentence_options(args)
    args = copy.copy(args)
    if headless and isinstance(args, DistillationArguments):
        check_options(args)
        if objective is None and args.losses is None:
            args.losses = default_losses([one.config for one in teachers], student.config)
    causal = family_of(student).causal
    if causal:
        check_no_masking(args)
    objective = objective_of(args, objective, causal)
    check_fit(student, teachers, corpus, tokenizer, objective)
    for model in (student, *teachers):
        limit_vocabulary(model, corpus.manifest.tokenizer.vocab_size)
    if objective.student_reads.logits == "none":  # the student's head, and perhaps its last layers, get no gradient
        args.ddp_find_unused_parameters = True
    if len(corpus.validation) == 0:
        args.eval_strategy, args.eval_on_start = "no", False
    return Parts(student, teachers, ensemble, corpus, tokenizer, objective, args)


def load_teachers(
    names: Sequence[str], corpus: Corpus, trim: bool = False, headless: bool = False
) -> tuple[list[PreTrainedModel], PreTrainedTokenizerFast]:
    """Load teachers, and cut their vocabulary if that of the corpus is cut.

    Args:
        names: folders or hub names, at least one.
        corpus: the text that the teachers are to read.
        trim: also cut rows of a vocabulary that are beyond the tokens of its tokenizer.
        headless: load encoders alone. If one of the teachers has no language-model head, all are loaded so.

    Returns:
        The teachers, and the tokenizer for them and their students.

    Raises:
        PotstillError: there is no such teacher, their tokenizers differ, or the corpus was prepared with another one.
    """
    tokenizers = [load_tokenizer(name, role="teacher") for name in names]
    check_one_tokenizer(names, tokenizers)
    kept = corpus.cut_needed(tokenizers[0], names[0])  # before the teachers' weights are downloaded
    teachers = [load_teacher(name, headless=headless) for name in names]
    if any(map(is_headless, teachers)):
        teachers = [
            teacher if is_headless(teacher) else load_teacher(name, headless=True)
            for name, teacher in zip(names, teachers, strict=True)
        ]
    if kept is None:
        tokens = corpus.manifest.tokenizer.vocab_size
        if trim:
            longer = [teacher.config.vocab_size > tokens for teacher in teachers]
            teachers = [
                prune_embeddings(teacher, np.arange(tokens)) if cut else teacher
                for teacher, cut in zip(teachers, longer, strict=True)
            ]
        for teacher in teachers:
            limit_vocabulary(teacher, tokens)
        return teachers, tokenizers[0]
    return [prune_embeddings(teacher, kept) for teacher in teachers], corpus.tokenizer()


def _opened(teacher: Teacher, corpus: Corpus, headless: bool) -> PreTrainedModel:
    if isinstance(teacher, str):
        return load_teachers([teacher], corpus, headless=headless)[0][0]
    check_finite(teacher, "the teacher")
    return teacher


def _check_teacher_tokenizers(
    teachers: Sequence[Teacher], corpus: Corpus, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """Check that all known tokenizers of teachers are equal, and that the corpus was prepared with them.

    The tokenizer of a teacher does not say whether the teacher's own vocabulary is cut: see `check_fit`.
    """
    known = {}
    for number, teacher in enumerate(teachers):
        name = name_of_teacher(teacher, number)
        if tokenizer is not None and getattr(tokenizer, "name_or_path", "") == name:
            known[name] = tokenizer  # it is the teacher's own; `gather_parts` compares it with the corpus
        elif isinstance(teacher, str) or (teacher.name_or_path and Path(name, "tokenizer_config.json").is_file()):
            known[name] = load_tokenizer(name, role="teacher")
    check_one_tokenizer(list(known), list(known.values()))
    for name, of_teacher in known.items():
        if of_teacher is not tokenizer:
            corpus.cut_needed(of_teacher, name)
