"""Do student, teacher, corpus and tokenizer fit together? Asked before the first step, not after hours."""

from __future__ import annotations

import os

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations import get_reporting_integration_callbacks

from potstill.arguments import RunArguments
from potstill.corpus import Corpus
from potstill.errors import PotstillError, first_line
from potstill.objective import DistillationObjective
from potstill.recipe import DistillationArguments, Recipe


def objective_of(args: Recipe) -> DistillationObjective:
    """Return the objective that a recipe asks for: masked LM alone where it speaks of no teacher."""
    if not isinstance(args, DistillationArguments):
        return DistillationObjective(alpha_ce=0.0, alpha_mlm=1.0, alpha_cos=0.0)
    return DistillationObjective(args.alpha_ce, args.alpha_mlm, args.alpha_cos, args.temperature, args.soft_targets)


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
    teacher: PreTrainedModel | None,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    objective: DistillationObjective,
) -> None:
    """Check what a step will assume.

    Raises:
        PotstillError: the first thing that does not fit, with what to do.
    """
    if objective.needs_teacher and teacher is None:
        raise PotstillError("The soft targets and the cosine need a teacher: name one, or set their weights to 0.")
    if tokenizer.mask_token_id is None:
        raise PotstillError("The tokenizer has no [MASK] token, so masked LM cannot be trained with it.")
    block_size = corpus.train.block_size
    for role, model in (("teacher", teacher), ("student", student)):
        if model is None:
            continue
        if model.config.vocab_size < len(tokenizer):
            raise PotstillError(
                f"The {role} knows {model.config.vocab_size} tokens but the tokenizer of the corpus has "
                f"{len(tokenizer)}: prepare the corpus with the {role}'s own tokenizer."
            )
        if model.config.max_position_embeddings < block_size:
            raise PotstillError(
                f"The {role} reads at most {model.config.max_position_embeddings} tokens but the blocks of "
                f"{corpus.folder} have {block_size}: prepare the corpus with a smaller --block_size."
            )
    if teacher is None:
        return
    if teacher.config.vocab_size != student.config.vocab_size:
        raise PotstillError(
            f"Teacher and student must share one vocabulary, but the teacher has {teacher.config.vocab_size} entries "
            f"and the student {student.config.vocab_size}."
        )
    if objective.alpha_cos > 0 and teacher.config.hidden_size != student.config.hidden_size:
        raise PotstillError(
            f"The cosine compares hidden states of equal width, but the teacher's are {teacher.config.hidden_size} "
            f"wide and the student's {student.config.hidden_size}: pass --alpha_cos 0."
        )
