"""Check before the first step that student, teacher, corpus and tokenizer fit together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations import get_reporting_integration_callbacks

from potstill.arguments import RunArguments
from potstill.corpus import Corpus
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError, first_line
from potstill.live_line import say
from potstill.objective import (
    OF_DISTILBERT,
    DistillationObjective,
    Ensemble,
    Objective,
    check_vocabularies,
    objective_from,
)
from potstill.recipe import DistillationArguments, Recipe
from potstill.student import family_of, is_headless, usable_length
from potstill.training.encoder_options import check_losses
from potstill.training.hardware import multiplies_bfloat16
from potstill.training.teachers import name_of_teacher


def objective_of(recipe: Recipe | Mapping[str, Any], given: Objective | None = None, causal: bool = False) -> Objective:
    """Return the objective of a recipe, given as options or as the values of a recipe file.

    A recipe with `losses` has the objective that they describe. A recipe with DistilBERT's weights has DistilBERT's
    objective. Any other recipe has masked LM alone, or causal LM for a causal model.

    Args:
        recipe: the options or values that describe the losses.
        given: an objective from Python, used in place of the recipe's.
        causal: whether the student is a causal model.

    Raises:
        PotstillError: a loss or one of its options is not valid; or both `given` and `losses` are there.
    """
    values = vars(recipe) if isinstance(recipe, Recipe) else recipe
    if given is not None:
        if values.get("losses") is not None:
            raise PotstillError("The losses of the recipe and an objective are both given: leave one of them out.")
        return given
    if values.get("losses") is not None:
        return objective_from(values["losses"])
    weights = {name: values[name] for name in OF_DISTILBERT if name in values}
    if weights:
        return DistillationObjective(**weights, causal=causal)
    return objective_from({"causal_lm" if causal else "masked_lm": 1.0})


def ensemble_of(recipe: Recipe, count: int) -> Ensemble:
    """Return how a recipe averages its teachers.

    Args:
        recipe: the options of the run.
        count: number of teachers.

    Raises:
        PotstillError: a weight is not valid, or there is not one weight for each teacher.
    """
    if not isinstance(recipe, DistillationArguments):
        return Ensemble.of(count)
    return Ensemble.of(count, recipe.teacher_weights, recipe.teacher_mean)


def check_one_tokenizer(names: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerFast]) -> None:
    """Check that the tokenizers of several teachers turn text into the same ids.

    Args:
        names: folder or hub name of each teacher.
        tokenizers: tokenizer of each teacher.

    Raises:
        PotstillError: two tokenizers differ. The message names their teachers.
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
    """Check the conditions under which `Trainer` would fail, or do something unwanted, when it starts.

    An option that has no effect on this machine, but does no harm, is told in a line; so is one that would help.

    Raises:
        PotstillError: the process has several devices (`Trainer` would copy the student, but not the teacher, to all of
            them); the processes of a launcher are not connected; --fp16 is used without a GPU; or a logging back end is
            unknown or not installed.
    """
    if args.n_gpu > 1:
        raise PotstillError(
            f"This process sees {args.n_gpu} GPUs: start one for each with torchrun --nproc_per_node {args.n_gpu} "
            "-m potstill, or choose one with CUDA_VISIBLE_DEVICES=0."
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != args.world_size:  # otherwise each would train by itself, and nobody would notice
        raise PotstillError(
            f"The launcher started {launched} processes, but they are not connected to each other: "
            f"{'start them with torchrun' if args.use_cpu else 'without a GPU, add --use_cpu'}."
        )
    if args.fp16 and args.device.type == "cpu":
        raise PotstillError("--fp16 is for GPUs and would be ignored on a CPU: use --bf16, or neither option.")
    if args.unrecorded and args.process_index == 0:
        _say_once(f"--cuda_graphs has no effect here: {args.unrecorded}.")
    if _gains_from_bf16(args) and args.process_index == 0:
        _say_once("This processor multiplies 16-bit matrices several times as fast: --bf16 makes a training faster.")
    try:
        for back_end in get_reporting_integration_callbacks(args.report_to):
            back_end()
    except (ImportError, RuntimeError, ValueError) as error:
        raise PotstillError(
            f"--report_to {','.join(args.report_to)} does not work ({first_line(error)}): install or set "
            "it up, or give --report_to none."
        ) from error


def _gains_from_bf16(args: RunArguments) -> bool:
    """Return whether the matrix products of a training in float32 would be much faster in 16 bits on this processor."""
    if not isinstance(args, RunArguments) or args.device.type != "cpu" or args.bf16 or args.fp16:
        return False
    # These need float32, or their products are no large ones.
    others = [getattr(args, name, None) for name in ("quantization", "fixed_point", "new_bilstm")]
    return not any(others) and multiplies_bfloat16()


@cache
def _say_once(line: str) -> None:
    """Print a line. A model that grows in several trainings is checked in each."""
    say(line)


def check_fit(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
) -> None:
    """Check the assumptions of a training step.

    Raises:
        PotstillError: something does not fit. The message is about the first problem and says what to do.
    """
    causal = family_of(student).causal
    names = [name_of_teacher(teacher, number) for number, teacher in enumerate(teachers)]
    roles = ["teacher"] if len(teachers) == 1 else [f"teacher {name}" for name in names]
    for role, teacher in zip(roles, teachers, strict=True):
        if family_of(teacher).causal != causal:
            raise PotstillError(
                f"The {role} and the student must be of one kind, but one of them is causal and the other reads both "
                "ways: take a student that was made from this teacher."
            )
    for name, teacher in zip(names[1:], teachers[1:], strict=True):
        ours, theirs = teachers[0].config.vocab_size, teacher.config.vocab_size
        if ours != theirs and corpus.kept_tokens is None:  # if it is cut, the check below says what to do
            raise PotstillError(
                f"All teachers must have the same tokenizer and vocabulary, but {names[0]} has {ours} entries and "
                f"{name} has {theirs}: leave one of them out."
            )
    headless = is_headless(student)
    for role, teacher in zip(roles, teachers, strict=True):
        if is_headless(teacher) != headless:
            without, with_head = ("student", role) if headless else (role, "student")
            raise PotstillError(
                f"The {without} has no language-model head but the {with_head} has one: load both with a head, or both "
                "with AutoModel."
            )
    if headless:
        check_losses(objective)
    if (objective.student_reads | objective.teacher_reads).pooled:
        names = [term.name for term in objective.terms if (term.student_reads | term.teacher_reads).pooled]
        raise PotstillError(
            f"losses: {' and '.join(names)} cannot be computed here, because the corpus {corpus.folder} holds blocks "
            "and not whole texts: prepare the text with --unit sentences, or choose other losses."
        )
    check_reading([*zip(roles, teachers, strict=True), ("student", student)], corpus, tokenizer)
    objective.check_direction(causal)
    for teacher in teachers:  # the evaluation compares with every teacher, whatever the losses are
        check_vocabularies(teacher.config, student.config)
    for number, config in enumerate([teacher.config for teacher in teachers] or [None]):
        try:
            objective.check(config, student.config, number)
        except PotstillError as error:
            if len(teachers) < 2:
                raise
            raise PotstillError(f"With the teacher {names[number]}: {error}") from error


def check_reading(
    models: Sequence[tuple[str, PreTrainedModel]], corpus: Corpus, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Check that models can read the blocks of a corpus.

    Args:
        models: role, for messages, and model; at least one pair. All are causal, or none is.
        corpus: the prepared text.
        tokenizer: of the corpus.

    Raises:
        PotstillError: something does not fit. The message is about the first problem and says what to do.
    """
    causal = family_of(models[0][1]).causal
    masked = not causal and not is_headless(models[0][1])
    if masked and tokenizer.mask_token_id is None:
        raise PotstillError(
            "The tokenizer has no [MASK] token, so masked LM cannot be trained with it: set its mask_token, or "
            "prepare the text with another tokenizer."
        )
    corpus.check_framing(causal)
    block_size = corpus.train.block_size
    for role, model in models:
        if model.config.vocab_size < len(tokenizer):
            raise PotstillError(
                f"The {role} knows {model.config.vocab_size} tokens but the tokenizer of the corpus has "
                f"{len(tokenizer)}: prepare the corpus with the {role}'s own tokenizer."
            )
        kept, whole = corpus.kept_tokens, corpus.manifest.whole_tokenizer
        if kept is not None and whole is not None and model.config.vocab_size != len(kept):
            raise PotstillError(
                f"The {role} knows {model.config.vocab_size} tokens, but the vocabulary of the corpus {corpus.folder} "
                f"is cut to {len(kept)} of {whole.vocab_size}: cut the {role} with prune_embeddings(model, "
                "corpus.kept_tokens)."
            )
        longest = usable_length(model.config)
        if longest is not None and longest < block_size:
            raise PotstillError(
                f"The {role} reads at most {longest} tokens but the blocks of "
                f"{corpus.folder} have {block_size}: prepare the corpus with a smaller --block_size."
            )
