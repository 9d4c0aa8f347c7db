"""Do student, teacher, corpus and tokenizer fit together? Asked before the first step, not after hours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations import get_reporting_integration_callbacks

from potstill.arguments import RunArguments
from potstill.corpus import Corpus
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError, first_line
from potstill.objective import (
    OF_DISTILBERT,
    DistillationObjective,
    Ensemble,
    Objective,
    check_vocabularies,
    objective_from,
)
from potstill.recipe import DistillationArguments, Recipe
from potstill.student import usable_length
from potstill.training.teachers import name_of_teacher


def objective_of(recipe: Recipe | Mapping[str, Any], given: Objective | None = None) -> Objective:
    """Return the objective that a recipe asks for, given as options or as the values of a recipe file.

    It is that of `losses` where there are any, else DistilBERT's by its weights, and masked LM alone where a recipe has
    neither.

    Args:
        recipe: what says the losses.
        given: an objective from Python, which stands in place of the recipe's.

    Raises:
        PotstillError: a loss, or an option of one, that cannot be; or `given` and `losses` are both there.
    """
    values = vars(recipe) if isinstance(recipe, Recipe) else recipe
    if given is not None:
        if values.get("losses") is not None:
            raise PotstillError("The losses of the recipe and an objective are both given: leave one of them out.")
        return given
    if values.get("losses") is not None:
        return objective_from(values["losses"])
    weights = {name: values[name] for name in OF_DISTILBERT if name in values}
    return DistillationObjective(**weights) if weights else objective_from({"masked_lm": 1.0})


def ensemble_of(recipe: Recipe, count: int) -> Ensemble:
    """Return how a recipe makes one teacher of so many.

    Raises:
        PotstillError: it says weights that cannot be, or not one for each teacher.
    """
    if not isinstance(recipe, DistillationArguments):
        return Ensemble.of(count)
    return Ensemble.of(count, recipe.teacher_weights, recipe.teacher_mean)


def check_one_tokenizer(names: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerFast]) -> None:
    """Check that the tokenizers of several teachers turn text into the same ids.

    Raises:
        PotstillError: two do not; they are named.
    """
    if len(tokenizers) < 2:
        return
    first = tokenizer_fingerprint(tokenizers[0])
    for name, tokenizer in zip(names[1:], tokenizers[1:], strict=True):
        if tokenizer_fingerprint(tokenizer) != first:
            raise PotstillError(
                f"All teachers must have the same tokenizer and vocabulary, but {names[0]} and {name} turn text into "
                "different tokens: leave one of them out."
            )


def check_launch(args: RunArguments) -> None:
    """Check what `Trainer` would stumble over, or do otherwise than wanted, when it starts.

    Raises:
        PotstillError: the process has several devices, to all of which `Trainer` would copy the student but not the
            teacher; the processes of a launcher do not know of each other; --fp16 without a GPU; or a logging back end
            is unknown or not installed.
    """
    if args.n_gpu > 1:
        raise PotstillError(
            f"This process sees {args.n_gpu} GPUs: start one for each with torchrun --nproc_per_node {args.n_gpu} "
            "-m potstill, or choose one with CUDA_VISIBLE_DEVICES=0."
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:  # each would train by itself, unnoticed
        raise PotstillError(
            f"The launcher started {started} processes, but they are not connected to each other"
            f"{'' if args.use_cpu else ': without a GPU, add --use_cpu'}."
        )
    if args.fp16 and args.device.type == "cpu":
        raise PotstillError("--fp16 is for GPUs and would be ignored on a CPU: use --bf16, or neither.")
    try:
        for back_end in get_reporting_integration_callbacks(args.report_to):
            back_end()
    except (ImportError, RuntimeError, ValueError) as error:
        raise PotstillError(f"--report_to {','.join(args.report_to)} does not work: {first_line(error)}.") from error


def check_fit(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
) -> None:
    """Check what a step will assume.

    Raises:
        PotstillError: the first thing that does not fit, with what to do.
    """
    if tokenizer.mask_token_id is None:
        raise PotstillError("The tokenizer has no [MASK] token, so masked LM cannot be trained with it.")
    block_size = corpus.train.block_size
    names = [name_of_teacher(teacher, number) for number, teacher in enumerate(teachers)]
    roles = ["teacher"] if len(teachers) == 1 else [f"teacher {name}" for name in names]
    for name, teacher in zip(names[1:], teachers[1:], strict=True):
        ours, theirs = teachers[0].config.vocab_size, teacher.config.vocab_size
        if ours != theirs:
            raise PotstillError(
                f"All teachers must have the same tokenizer and vocabulary, but {names[0]} has {ours} entries and "
                f"{name} has {theirs}: leave one of them out."
            )
    for role, model in (*zip(roles, teachers, strict=True), ("student", student)):
        if model.config.vocab_size < len(tokenizer):
            raise PotstillError(
                f"The {role} knows {model.config.vocab_size} tokens but the tokenizer of the corpus has "
                f"{len(tokenizer)}: prepare the corpus with the {role}'s own tokenizer."
            )
        longest = usable_length(model.config)
        if longest is not None and longest < block_size:
            raise PotstillError(
                f"The {role} reads at most {longest} tokens but the blocks of "
                f"{corpus.folder} have {block_size}: prepare the corpus with a smaller --block_size."
            )
    for teacher in teachers:  # the evaluation compares with it, whatever the losses
        check_vocabularies(teacher.config, student.config)
    for number, taught_by in enumerate(teachers or [None]):
        try:
            objective.check(None if taught_by is None else taught_by.config, student.config)
        except PotstillError as error:
            if len(teachers) < 2:
                raise
            raise PotstillError(f"With the teacher {names[number]}: {error}") from error
