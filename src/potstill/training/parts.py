"""What a training is made of: student, teachers, corpus, tokenizer and objective, opened where they are only named."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import Corpus, load_tokenizer
from potstill.objective import Ensemble, Objective
from potstill.recipe import Recipe
from potstill.student import load_masked_lm, takes_token_types
from potstill.student.weights import check_finite
from potstill.training.compatibility import check_fit, check_launch, check_one_tokenizer, ensemble_of, objective_of
from potstill.training.teachers import name_of_teacher

Teacher: TypeAlias = PreTrainedModel | str


@dataclass(frozen=True)
class Parts:
    """What `DistillationTrainer` needs, checked to fit together.

    Attributes:
        student: the model to train.
        teachers: the models to learn from; none to train without one.
        ensemble: how several teachers become one.
        corpus: the prepared text.
        tokenizer: to be saved with the student.
        objective: what is minimised.
        args: of the run, with what the other parts ask for.
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
    """Open what is only named, and make sure that all of it fits together. The arguments given stay as they are.

    Args:
        student: a model of a known family.
        corpus: folder written by `prepare`, or the opened `Corpus`.
        args: of the run.
        teacher: a model, a folder, or a hub name; or several of them.
        tokenizer: to be saved with the student; the corpus's own if not given.
        objective: in place of what `args` say of losses.

    Raises:
        PotstillError: something is not there, or does not fit.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    given = [] if teacher is None else [teacher] if isinstance(teacher, Teacher) else list(teacher)
    ensemble = ensemble_of(args, len(given))
    _check_teacher_tokenizers(given, corpus, tokenizer)
    teachers = tuple(_opened(one) for one in given)
    tokenizer = tokenizer or corpus.tokenizer(takes_token_types(student.config))
    corpus.check_tokenizer(tokenizer, "the tokenizer given")
    check_launch(args)
    objective = objective_of(args, objective)
    check_fit(student, teachers, corpus, tokenizer, objective)
    args = copy.copy(args)
    if objective.student_reads.logits == "none":  # nothing trains the student's head, nor perhaps its last layers
        args.ddp_find_unused_parameters = True
    if len(corpus.validation) == 0:
        args.eval_strategy, args.eval_on_start = "no", False
    return Parts(student, teachers, ensemble, corpus, tokenizer, objective, args)


def _opened(teacher: Teacher) -> PreTrainedModel:
    if isinstance(teacher, str):
        return load_masked_lm(teacher)
    check_finite(teacher, "the teacher")
    return teacher


def _check_teacher_tokenizers(
    teachers: Sequence[Teacher], corpus: Corpus, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """Where teachers' tokenizers are known, make sure that they are one, and that the corpus was prepared with it."""
    known = {}
    for number, teacher in enumerate(teachers):
        name = name_of_teacher(teacher, number)
        if tokenizer is not None and getattr(tokenizer, "name_or_path", "") == name:
            known[name] = tokenizer  # it is the teacher's own, and is compared with the corpus as the tokenizer given
        elif isinstance(teacher, str) or (teacher.name_or_path and Path(name, "tokenizer_config.json").is_file()):
            known[name] = load_tokenizer(name, role="teacher")
    check_one_tokenizer(list(known), list(known.values()))
    for name, found in known.items():
        if found is not tokenizer:
            corpus.check_tokenizer(found, name)
