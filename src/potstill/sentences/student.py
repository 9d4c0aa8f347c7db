"""The student of a sentence encoder, before any training."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Literal

import torch

from potstill.sentences.encoder import SentenceEncoder
from potstill.student import family_of
from potstill.student.build import check_initialise, initialised_from, layers_to_copy
from potstill.student.headless import copy_layers, shallower_config


def build_sentence_student(
    encoder: SentenceEncoder | str | os.PathLike[str],
    num_hidden_layers: int | None = None,
    layers: str | Sequence[int] = "alternate",
    initialise: Literal["teacher", "random"] = "teacher",
    seed: int = 0,
) -> SentenceEncoder:
    """The student of a sentence encoder: an encoder of the same class with fewer layers.

    Everything outside of the layers is copied: embeddings, Dense modules, pooling, normalisation, prompts, tokenizer.
    The caller's random state is left as it was.

    Args:
        encoder: the teacher, or its folder or hub name.
        num_hidden_layers: depth of the student. Half the teacher's (rounded down, at least 1) by default, or as many as
            `layers` lists.
        layers: which teacher layers to copy; see `build_student`.
        initialise: "teacher" copies the weights; "random" draws all of them as the architecture does by itself, those
            of Dense modules too.
        seed: of the random initialisation.

    Returns:
        The student in evaluation mode, on the teacher's device and in its precision, but never below float32: it is to
        be trained.

    Raises:
        PotstillError: the teacher cannot be loaded, or its layers cannot be told apart; the depth or the choice of
            layers is impossible; `initialise` is neither of the two.
    """
    check_initialise(initialise)
    if not isinstance(encoder, SentenceEncoder):
        encoder = SentenceEncoder.load(encoder)
    teacher = encoder.model
    family_of(teacher).prefix_in(teacher)  # refuses layers that cannot be told apart
    chosen = layers_to_copy(teacher.config, num_hidden_layers, layers)
    config = shallower_config(teacher.config, chosen)
    with initialised_from(seed):
        model = type(teacher)(config)
        dense = [part.fresh() for part in encoder.dense]
    if getattr(teacher, "pooler", None) is None and hasattr(teacher, "pooler"):
        model.pooler = None
    student = SentenceEncoder(
        model,
        copy.deepcopy(encoder.tokenizer),
        encoder.max_length,
        encoder.pooling,
        dense,
        encoder.normalize,
        encoder.prompts,
        encoder.default_prompt_name,
        encoder.similarity_fn_name,
        encoder.lower_case,
    )
    student.to(dtype=torch.promote_types(teacher.dtype, torch.float32))
    if initialise == "teacher":
        copy_layers(teacher, model, chosen)
        student.dense.load_state_dict(encoder.dense.state_dict())
    return student.to(device=teacher.device).eval()
