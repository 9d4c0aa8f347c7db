"""The student that a run trains, made from its teacher by the options of the run."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.corpus import Corpus
from potstill.recipe import DistillationArguments
from potstill.student import build_student
from potstill.student.layers import explicit_layers
from potstill.student.sizing import Budget, Estimate, largest_student

MEASURED_BLOCKS = 16
"""Blocks of the corpus on which the importance of heads, neurons and dimensions is measured."""


def new_student(
    args: DistillationArguments, teacher: PreTrainedModel, corpus: Corpus
) -> tuple[PreTrainedModel, Estimate | None]:
    """Make the student that the options describe. With `max_size` its shape is chosen and printed first.

    Args:
        args: options of the run.
        teacher: with the vocabulary of the corpus.
        corpus: what the student will be trained on.

    Returns:
        The student, and with `max_size` the estimate of what it takes.

    Raises:
        PotstillError: there is no such student.
    """
    sizes: dict[str, Any] = {
        "num_hidden_layers": args.num_hidden_layers,
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": args.intermediate_size,
    }
    chosen = None
    if args.max_size is not None:
        listed = explicit_layers(args.layers)
        if sizes["num_hidden_layers"] is None and listed is not None:
            sizes["num_hidden_layers"] = len(listed)
        block_size, copied = corpus.train.block_size, args.initialise == "teacher"
        chosen = largest_student(teacher, Budget.parse(args.max_size), block_size, **sizes, copied=copied)
        sizes = {name: chosen.as_record()[name] for name in sizes}
        if args.process_index == 0:
            print(f"--max_size {args.max_size}: {chosen}", file=sys.stderr, flush=True)
    student = build_student(
        teacher,
        sizes.pop("num_hidden_layers"),
        args.layers,
        args.initialise,
        args.fold_token_types,
        args.seed,
        **sizes,
        narrow_by=args.narrow_by,
        blocks=_some_blocks(corpus),
    )
    return student, chosen


def _some_blocks(corpus: Corpus) -> Tensor:
    """Return (B, L) token ids of blocks that are spread evenly over the training split."""
    number = min(MEASURED_BLOCKS, len(corpus.train))
    chosen = torch.linspace(0, len(corpus.train) - 1, number).round().long().tolist()
    return corpus.train.__getitems__(chosen)["input_ids"]
