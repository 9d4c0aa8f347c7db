"""The student that a run trains, made from its teacher by the options of the run."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.corpus import Corpus
from potstill.live_line import say
from potstill.recipe import DistillationArguments
from potstill.student import build_student
from potstill.student.layers import AUTO, explicit_layers
from potstill.student.sizing import Beside, Budget, Estimate, largest_student

MEASURED_BLOCKS = 16
"""Blocks of the corpus on which the importance of heads, neurons and dimensions is measured."""


def choose_sizes(
    args: DistillationArguments,
    teacher: PreTrainedModel,
    corpus: Corpus,
    text_length: int | None = None,
    beside: Beside | None = None,
    reads_width: bool = False,
) -> tuple[dict[str, int | None], Estimate | None]:
    """Return the sizes of the student that the options give. With `max_size` they are chosen and printed.

    Args:
        args: options of the run.
        teacher: with the vocabulary of the corpus.
        corpus: what the student will be trained on.
        text_length: tokens that attend to each other, for the speed; those of a block if not given.
        beside: what is saved beside the model.
        reads_width: whether a module beside the model reads its hidden states, so that the width has to stay.

    Returns:
        The sizes by the names of their options, None for what `build_student` decides; and with `max_size` the estimate
        of what the student takes.

    Raises:
        PotstillError: no student keeps to `max_size`.
    """
    sizes: dict[str, int | None] = {
        "num_hidden_layers": args.num_hidden_layers,
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": args.intermediate_size,
    }
    if args.max_size is None:
        return sizes, None
    listed = None if args.layers in (None, AUTO) else explicit_layers(args.layers)
    if sizes["num_hidden_layers"] is None and listed is not None:
        sizes["num_hidden_layers"] = len(listed)
    if reads_width and sizes["hidden_size"] is None:
        sizes["hidden_size"] = teacher.config.hidden_size
    length, copied = text_length or corpus.train.block_size, args.initialise == "teacher"
    chosen = largest_student(teacher, Budget.parse(args.max_size), length, **sizes, copied=copied, beside=beside)
    if args.process_index == 0:
        say(f"--max_size {args.max_size}: {chosen}")
    return {name: chosen.as_record()[name] for name in sizes}, chosen


def new_student(
    args: DistillationArguments, teacher: PreTrainedModel, corpus: Corpus, sizes: dict[str, int | None] | None = None
) -> PreTrainedModel:
    """Make the student that the options describe.

    Args:
        args: options of the run. Without `layers`, or with `auto`, layers are copied by the rule `alternate`.
        teacher: with the vocabulary of the corpus.
        corpus: what the student will be trained on.
        sizes: from `choose_sizes`, which is called if they are not given.

    Raises:
        PotstillError: there is no such student.
    """
    sizes = dict(sizes or choose_sizes(args, teacher, corpus)[0])
    return build_student(
        teacher,
        sizes.pop("num_hidden_layers"),
        "alternate" if args.layers in (None, AUTO) else args.layers,
        args.initialise,
        args.fold_token_types,
        args.seed,
        **sizes,
        narrow_by=args.narrow_by,
        blocks=_some_blocks(corpus),
        dropout=args.dropout,
    )


def _some_blocks(corpus: Corpus) -> Tensor:
    """Return (B, L) token ids of blocks that are spread evenly over the training split."""
    number = min(MEASURED_BLOCKS, len(corpus.train))
    chosen = torch.linspace(0, len(corpus.train) - 1, number).round().long().tolist()
    return corpus.train.__getitems__(chosen)["input_ids"]
