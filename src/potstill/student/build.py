"""A teacher in, its initial student out."""

import os
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.family import family_of
from potstill.student.layers import choose_layers, default_depth, explicit_layers
from potstill.student.loading import load_masked_lm


def build_student(
    teacher: PreTrainedModel | str | os.PathLike[str],
    num_hidden_layers: int | None = None,
    layers: str | Sequence[int] = "alternate",
    initialise: Literal["teacher", "random"] = "teacher",
    fold_token_types: bool = True,
    seed: int = 0,
) -> PreTrainedModel:
    """The student of `teacher`, before any training (Sanh et al. 2019, section 3).

    The student of a BERT is a `DistilBertForMaskedLM`: no token-type embeddings, no pooler, fewer layers, everything
    else of the same shape. That of any other teacher is of its own class, with fewer layers. All that has a counterpart
    is copied: word and position embeddings and their LayerNorm, the chosen layers whole, and the language-model head
    whole, its transform and LayerNorm included. The caller's random state is left as it was.

    Args:
        teacher: A language model of a known family, or its folder or hub name.
        num_hidden_layers: Depth of the student. Half the teacher's (rounded down, at least 1) by default, or as many
            as `layers` lists.
        layers: Which teacher layers to copy; see `choose_layers`.
        initialise: `"teacher"` copies the weights; `"random"` draws all of them as the architecture does by itself
            (the ablation of Sanh et al. 2019, table 4), and then `layers` gives the depth at most.
        fold_token_types: Add the teacher's segment-0 embedding into the student's position embeddings. The embedding
            outputs of both are then equal for text of a single segment; without it every input is shifted.
        seed: Of the random initialisation.

    Returns:
        The student in evaluation mode, on the teacher's device and in its precision, but never below float32: it is
        to be trained.

    Raises:
        PotstillError: The teacher cannot be loaded, has no language-model head or is of no known family; the depth or
            the choice of layers is impossible; `initialise` is neither of the two.
    """
    if initialise not in ("teacher", "random"):
        raise PotstillError(f"initialise is {initialise!r}: say 'teacher' or 'random'")
    if not isinstance(teacher, PreTrainedModel):
        teacher = load_masked_lm(teacher)
    family = family_of(teacher)
    if teacher.get_output_embeddings() is None:
        raise PotstillError(
            f"the teacher is a {type(teacher).__name__}, which has no language-model head: load it with load_masked_lm"
        )
    teacher_layers = teacher.config.num_hidden_layers
    if num_hidden_layers is None:
        listed = explicit_layers(layers)
        num_hidden_layers = default_depth(teacher_layers) if listed is None else len(listed)
    chosen = choose_layers(teacher_layers, num_hidden_layers, layers)

    config = family.student_config(teacher.config, chosen)
    dtype = torch.promote_types(teacher.dtype, torch.float32)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would seed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        student = family_of(config).auto_class.from_config(config, dtype=torch.float32)
    student.to(dtype=dtype)
    if initialise == "teacher":
        family.copy_weights(teacher, student, chosen, fold_token_types)
    return student.to(device=teacher.device).eval()
