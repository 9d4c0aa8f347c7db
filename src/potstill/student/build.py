"""A teacher in, its initial student out."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from potstill.errors import PotstillError
from potstill.student.family import family_of, family_or_none
from potstill.student.headless import copy_layers, new_encoder, shallower_config
from potstill.student.interface import is_headless
from potstill.student.layers import choose_layers, default_depth, explicit_layers
from potstill.student.narrow import NarrowBy, narrow
from potstill.student.pruned import check_uniform
from potstill.student.quiet import quiet_loading
from potstill.student.sizes import sizes_of, wanted_sizes, with_sizes
from potstill.student.teacher_loading import load_teacher

logger = logging.getLogger(__name__)


def build_student(
    teacher: PreTrainedModel | str | os.PathLike[str],
    num_hidden_layers: int | None = None,
    layers: str | Sequence[int] = "alternate",
    initialise: Literal["teacher", "random"] = "teacher",
    fold_token_types: bool = True,
    seed: int = 0,
    *,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    narrow_by: NarrowBy = "importance",
    blocks: Tensor | None = None,
    dropout: float | None = None,
) -> PreTrainedModel:
    """The student of `teacher`, before any training (Sanh et al. 2019, section 3).

    The student of a BERT is a `DistilBertForMaskedLM`: no token-type embeddings, no pooler, fewer layers, everything
    else of the same shape. That of any other teacher is of its own class, with fewer layers. All that has a counterpart
    is copied: word and position embeddings and their LayerNorm, the chosen layers whole, and the language-model head
    whole, its transform and LayerNorm included. A student that is to be narrower is first made at full width, and then
    narrowed: see `narrow`. The caller's random state is left as it was.

    The student of a teacher without a head, as `AutoModel` loads it, is of its class and has no head either. That of a
    BERT is a BERT, with its segments and its pooler.

    Args:
        teacher: A language model or an encoder of a known family, or its folder or hub name.
        num_hidden_layers: Depth of the student. Half the teacher's (rounded down, at least 1) by default, or as many
            as `layers` lists.
        layers: Which teacher layers to copy; see `choose_layers`. Where the teacher's layers are of several kinds, what
            a rule chooses is moved so that they come in the teacher's order (`Family.adjust_layers`), and a line is
            logged. A list is taken as it is.
        initialise: `"teacher"` copies the weights; `"random"` draws all of them as the architecture does by itself
            (the ablation of Sanh et al. 2019, table 4), and then `layers` gives the depth at most.
        fold_token_types: Add the teacher's segment-0 embedding into the student's position embeddings. The embedding
            outputs of both are then equal for text of a single segment; without it every input is shifted.
        seed: Of everything that is random.
        hidden_size: Width of the hidden states; the teacher's by default. See `wanted_sizes` for what follows from the
            sizes that are given.
        num_attention_heads: Heads of each layer.
        intermediate_size: Width of the feed-forward layers.
        narrow_by: Which parts of the teacher a narrower student keeps; see `narrow`.
        blocks: (B, L) int64, some text on which `narrow` measures what is important.
        dropout: Of hidden states and attention while this student is trained; the teacher's by default. The config
            keeps the teacher's dropout, so that a saved student is fine-tuned with that.

    Returns:
        The student in evaluation mode, on the teacher's device and in its precision, but never below float32: it is
        to be trained.

    Raises:
        PotstillError: The teacher cannot be loaded, has the head of a task or is of no known family; the depth, the
            choice of layers, a size or the dropout is impossible; `initialise` or `narrow_by` is neither of its two
            values.
    """
    check_initialise(initialise)
    if not isinstance(teacher, PreTrainedModel):
        teacher = load_teacher(teacher)
    family, headless = family_of(teacher), is_headless(teacher)
    if teacher.get_output_embeddings() is None and not headless:
        raise PotstillError(
            f"the teacher is a {type(teacher).__name__}, which has no language-model head: load it with "
            "load_masked_lm, or with AutoModel for a student without a head"
        )
    with quiet_loading():
        reason = family.unusable(teacher)
    if reason is not None:
        raise PotstillError(f"the teacher cannot be used: it {reason}")
    chosen = layers_to_copy(teacher.config, num_hidden_layers, layers)
    config = (shallower_config if headless else family.student_config)(teacher.config, chosen)
    sizes = wanted_sizes(config, hidden_size, num_attention_heads, intermediate_size, copied=initialise == "teacher")
    if initialise == "random":
        config = with_sizes(config, sizes)
    of_teacher = _set_dropout(config, dropout)
    dtype = torch.promote_types(teacher.dtype, torch.float32)
    # Random weights that are overwritten at once would take a second to draw for a student of BERT-base.
    with initialised_from(seed), no_init_weights() if initialise == "teacher" else nullcontext():
        if headless:
            student = new_encoder(teacher, config)
        else:
            student = family_of(config).auto_class.from_config(config, dtype=torch.float32)
    student.tie_weights()
    student.to(dtype=dtype)
    if initialise == "teacher":
        if headless:
            copy_layers(teacher, student, chosen)
        else:
            family.copy_weights(teacher, student, chosen, fold_token_types)
        if sizes != sizes_of(config):
            student = narrow(student, **asdict(sizes), narrow_by=narrow_by, blocks=blocks, seed=seed)
    for name, value in of_teacher.items():
        setattr(student.config, name, value)
    return student.to(device=teacher.device).eval()


def _set_dropout(config: PreTrainedConfig, dropout: float | None) -> dict[str, float]:
    """Set the dropout of a config, unless it is None. Return the values that it had before, by name.

    Raises:
        PotstillError: The family has no known dropout, or the value is impossible.
    """
    if dropout is None:
        return {}
    if not 0 <= dropout < 1:
        raise PotstillError(f"dropout is {dropout}: it must be 0 or more and below 1")
    names = family_of(config).dropouts
    if not names:
        raise PotstillError(
            f"potstill does not know what models of type {config.model_type!r} call their dropout: leave dropout out"
        )
    before = {name: getattr(config, name) for name in names}
    for name in names:
        setattr(config, name, dropout)
    return before


def layers_to_copy(
    config: PreTrainedConfig, num_hidden_layers: int | None = None, layers: str | Sequence[int] = "alternate"
) -> list[int]:
    """The teacher layer that each student layer copies; see `build_student` for the arguments.

    Args:
        config: Of the teacher, which may be of no family.
        num_hidden_layers: Depth of the student, or None.
        layers: A rule or a list.

    Raises:
        PotstillError: See `choose_layers`; or the teacher is pruned.
    """
    check_uniform(config, "the teacher")
    listed = explicit_layers(layers)
    if num_hidden_layers is None:
        num_hidden_layers = default_depth(config.num_hidden_layers) if listed is None else len(listed)
    chosen = choose_layers(config.num_hidden_layers, num_hidden_layers, layers)
    family = family_or_none(config)
    if listed is not None or family is None:
        return chosen
    adjusted = family.adjust_layers(config, chosen)
    if adjusted != chosen:
        ours, theirs = (",".join(map(str, numbers)) for numbers in (adjusted, chosen))
        logger.warning(
            "The student copies the teacher's layers %s. They were chosen so that each kind of layer comes where the "
            "teacher has it; the rule %r alone would choose %s.",
            ours,
            str(layers),
            theirs,
        )
    return adjusted


def check_initialise(initialise: str) -> None:
    """Refuse what is no way to initialise a student.

    Raises:
        PotstillError: it is neither 'teacher' nor 'random'.
    """
    if initialise not in ("teacher", "random"):
        raise PotstillError(f"initialise is {initialise!r}: it must be 'teacher' or 'random'")


@contextmanager
def initialised_from(seed: int) -> Iterator[None]:
    """Let what is built in the body be random from `seed`, on the CPU; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would seed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        yield
