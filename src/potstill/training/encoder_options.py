"""Options that a run would ignore, because they are for another kind of model; and losses without a head.

Without a head, teacher and student read plain text: nothing is masked, because nothing is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective import OF_DISTILBERT, Objective
from potstill.recipe import DistillationArguments, Recipe
from potstill.student import family_of

OF_MASKING = ("masking", "mlm_probability", "mlm_smoothing")
OF_LANGUAGE_MODELS = (
    *OF_MASKING,
    *("teacher_mean", "fold_token_types", "quantization"),
    *OF_DISTILBERT,
)
"""Options of `distill` that mean nothing for an encoder without a head."""

OF_SENTENCE_ENCODERS = {
    "embedding_size": "which have an embedding of a text",
    "teacher_embeddings": "which learn embeddings of whole texts",
}
"""Option of `distill` that means nothing for a language model or an encoder for fine-tuning → why."""

READ_LOGITS = ("soft_targets", "masked_lm", "causal_lm", "logits_mse")


def check_options(args: DistillationArguments) -> None:
    """Check that no option is given that would be ignored.

    Raises:
        PotstillError: an option is for language models.
    """
    for name in OF_LANGUAGE_MODELS:
        if getattr(args, name) != getattr(type(args), name):
            advice = "give the losses with --losses" if name in OF_DISTILBERT else "leave it out"
            raise PotstillError(
                f"--{name} is for language models, but the teacher is distilled without a head, and reads plain text: "
                f"{advice}."
            )


def check_no_masking(args: Recipe) -> None:
    """Check that no option is given that a training of a causal model would ignore.

    Raises:
        PotstillError: an option is about masked tokens.
    """
    for name in OF_MASKING:
        usual = getattr(type(args), name)
        if usual is not None and getattr(args, name) != usual:  # a bench decides about masks itself
            raise PotstillError(
                f"--{name} is for models that read both ways, but the model is causal, and none of its tokens is "
                "masked: leave it out."
            )


def check_no_sentence_options(args: Recipe) -> None:
    """Check that no option is given that a training on blocks of running text would ignore.

    Raises:
        PotstillError: an option is for sentence encoders.
    """
    for name, why in OF_SENTENCE_ENCODERS.items():
        if hasattr(args, name) and getattr(args, name) != getattr(type(args), name):
            raise PotstillError(f"--{name} is for sentence encoders, {why}: leave it out.")


def check_losses(objective: Objective) -> None:
    """Check that all losses can be computed without logits.

    Raises:
        PotstillError: a loss reads logits, or masked tokens.
    """
    if (objective.student_reads | objective.teacher_reads).logits == "none":
        objective.check_nothing_masked()
        return
    names = [name for name in objective.losses if name in READ_LOGITS] or list(objective.losses)
    raise PotstillError(
        f"losses: {' and '.join(names)} cannot be computed without a language-model head: choose from hidden_cosine, "
        "hidden_mse and attention_relations."
    )


def default_losses(teachers: Sequence[PreTrainedConfig], student: PreTrainedConfig) -> dict[str, Any]:
    """Return the losses if a recipe gives none: of the last hidden states, and of the relations in the last layer.

    The relations (MiniLMv2, Wang et al. 2021) are left out where a family does not say where queries, keys and values
    are. Their heads are the most that divide all widths, and no more than a teacher has attention heads.

    Args:
        teachers: at least one.
        student: of these teachers.
    """
    widths = {student.hidden_size, *(teacher.hidden_size for teacher in teachers)}
    losses: dict[str, Any] = {"hidden_cosine" if len(widths) == 1 else "hidden_mse": 1.0}
    if all(family_of(config).shows_attention for config in (*teachers, student)):
        most = min(teacher.num_attention_heads for teacher in teachers)
        heads = max(heads for heads in range(1, most + 1) if not any(width % heads for width in widths))
        losses["attention_relations"] = {"weight": 1.0, "relation_heads": heads}
    return losses
