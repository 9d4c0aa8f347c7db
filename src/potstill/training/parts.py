"""The parts of a training: student, teacher, corpus, tokenizer and objective. Parts given by name are opened."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import Corpus, load_tokenizer
from potstill.objective import Objective
from potstill.recipe import Recipe
from potstill.student import family_of, load_masked_lm, prune_embeddings, takes_token_types
from potstill.student.weights import check_finite
from potstill.training.compatibility import check_fit, check_launch, objective_of


@dataclass(frozen=True)
class Parts:
    """The parts that `DistillationTrainer` needs. They have been checked to fit together.

    Attributes:
        student: the model to train.
        teacher: the model to learn from; None to train without one.
        corpus: the prepared text.
        tokenizer: saved with the student.
        objective: the loss to minimise.
        args: options of the run, adjusted to the other parts.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel | None
    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    objective: Objective
    args: Recipe


def gather_parts(
    student: PreTrainedModel,
    corpus: Corpus | str | Path,
    args: Recipe,
    teacher: PreTrainedModel | str | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    objective: Objective | None = None,
) -> Parts:
    """Open the parts that are given by name, and check that all parts fit together. The arguments are not changed.

    Args:
        student: a model of a known family.
        corpus: folder written by `prepare`, or an open `Corpus`.
        args: options of the run.
        teacher: a model, a folder, or a hub name.
        tokenizer: saved with the student; by default the tokenizer of the corpus.
        objective: used in place of the losses in `args`.

    Raises:
        PotstillError: a part does not exist, or does not fit.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    if isinstance(teacher, str):
        teacher, _ = load_teacher(teacher, corpus)
    elif teacher is not None:
        _check_teacher_tokenizer(teacher, corpus, tokenizer)
        check_finite(teacher, "the teacher")
    tokenizer = tokenizer or corpus.tokenizer(takes_token_types(student.config))
    corpus.check_tokenizer(tokenizer, "the tokenizer given")
    check_launch(args)
    objective = objective_of(args, objective, family_of(student).causal)
    check_fit(student, teacher, corpus, tokenizer, objective)
    args = copy.copy(args)
    if objective.student_reads.logits == "none":  # the student's head, and perhaps its last layers, get no gradient
        args.ddp_find_unused_parameters = True
    if len(corpus.validation) == 0:
        args.eval_strategy, args.eval_on_start = "no", False
    return Parts(student, teacher, corpus, tokenizer, objective, args)


def load_teacher(name: str, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a teacher, and cut its vocabulary where that of the corpus is cut.

    Args:
        name: folder or hub name.
        corpus: what the teacher is to read.

    Returns:
        The teacher, and the tokenizer for it and its students.

    Raises:
        PotstillError: there is no such teacher, or the corpus was prepared with another tokenizer.
    """
    tokenizer = load_tokenizer(name, role="teacher")
    kept = corpus.cut_needed(tokenizer, name)  # before the teacher's weights are fetched
    teacher = load_masked_lm(name)
    return (teacher, tokenizer) if kept is None else (prune_embeddings(teacher, kept), corpus.tokenizer())


def _check_teacher_tokenizer(
    teacher: PreTrainedModel, corpus: Corpus, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """Where the teacher's tokenizer is known, make sure that the corpus was prepared with it.

    Whether a teacher whose tokenizer is whole was cut itself is not known from that: see `check_fit`.
    """
    name = getattr(teacher, "name_or_path", "")
    if tokenizer is not None and name and getattr(tokenizer, "name_or_path", "") == name:
        return  # it is the teacher's own, and is compared with the corpus as the tokenizer given
    if Path(name or "-", "tokenizer_config.json").is_file():
        corpus.cut_needed(load_tokenizer(name, role="teacher"), name)
