"""The student of a sentence encoder, before any training."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.sentences.encoder import SentenceEncoder
from potstill.student import family_of
from potstill.student.build import check_initialise, initialised_from, layers_to_copy
from potstill.student.headless import copy_layers, new_encoder, shallower_config
from potstill.student.narrow import NarrowBy, narrow
from potstill.student.sizes import sizes_of, wanted_sizes, with_sizes


def build_sentence_student(
    encoder: SentenceEncoder | str | os.PathLike[str],
    num_hidden_layers: int | None = None,
    layers: str | Sequence[int] = "alternate",
    initialise: Literal["teacher", "random"] = "teacher",
    seed: int = 0,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    narrow_by: NarrowBy = "importance",
    texts: Tensor | None = None,
) -> SentenceEncoder:
    """The student of a sentence encoder: an encoder of the same class with fewer or narrower layers.

    Everything outside of the layers is copied: embeddings, Dense modules, pooling, normalisation, prompts, tokenizer.
    The caller's random state is left as it was.

    Args:
        encoder: the teacher, or its folder or hub name.
        num_hidden_layers: depth of the student. Half the teacher's (rounded down, at least 1) by default, or as many as
            `layers` lists.
        layers: which teacher layers to copy; see `build_student`.
        initialise: "teacher" copies the weights; "random" draws all of them as the architecture does by itself, those
            of Dense modules too.
        seed: of the random initialisation, and of the random choice in `narrow`.
        hidden_size: width of the hidden states; the teacher's by default. See `wanted_sizes` for what follows from the
            sizes that are given.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the feed-forward layers.
        narrow_by: which parts of the teacher a narrower student keeps; see `narrow`.
        texts: (B, L) int64, token ids of texts of one length, on which `narrow` measures what is important.

    Returns:
        The student in evaluation mode, on the teacher's device and in its precision, but never below float32: it is to
        be trained.

    Raises:
        PotstillError: the teacher cannot be loaded, or its layers cannot be told apart; the depth or the choice of
            layers or a size is impossible; the teacher has Dense modules, and the student is to have another
            hidden size; `initialise` or `narrow_by` is neither of its two values.
    """
    check_initialise(initialise)
    if not isinstance(encoder, SentenceEncoder):
        encoder = SentenceEncoder.load(encoder)
    teacher = encoder.model
    family_of(teacher).prefix_in(teacher)  # refuses layers that cannot be told apart
    chosen = layers_to_copy(teacher.config, num_hidden_layers, layers)
    config = shallower_config(teacher.config, chosen)
    sizes = None
    if hidden_size or num_attention_heads or intermediate_size:
        copied = initialise == "teacher"
        sizes = wanted_sizes(config, hidden_size, num_attention_heads, intermediate_size, copied)
        if len(encoder.dense) and sizes.hidden_size != config.hidden_size:
            raise PotstillError(
                f"hidden_size is {sizes.hidden_size}, but the Dense module of the teacher reads vectors that are made "
                f"of hidden states {config.hidden_size} wide: leave hidden_size out"
            )
        if not copied:
            config = with_sizes(config, sizes)
    with initialised_from(seed):
        model = new_encoder(teacher, config)
        dense = [part.fresh() for part in encoder.dense]
    model.to(dtype=torch.promote_types(teacher.dtype, torch.float32))
    if initialise == "teacher":
        copy_layers(teacher, model, chosen)
        if sizes not in (None, sizes_of(config)):
            model = narrow(model, **asdict(sizes), narrow_by=narrow_by, blocks=texts, seed=seed)
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
    student.to(dtype=model.dtype)
    if initialise == "teacher":
        student.dense.load_state_dict(encoder.dense.state_dict())
    return student.to(device=teacher.device).eval()
