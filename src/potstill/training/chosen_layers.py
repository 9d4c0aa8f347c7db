"""The teacher layers of a run: those that its options name, those that a search finds, or those that it began with."""

from __future__ import annotations

import copy
import sys

import torch
from transformers import PreTrainedModel

from potstill.corpus import Corpus
from potstill.recipe import DistillationArguments
from potstill.student.layers import AUTO
from potstill.training.checkpoints import load_run_state
from potstill.training.layer_search import LayerSearch, find_layers
from potstill.training.memory import fitting_memory


def decide_layers(
    args: DistillationArguments, teacher: PreTrainedModel, corpus: Corpus, depth: int | None = None
) -> tuple[DistillationArguments, LayerSearch | None]:
    """Return the options with the layers that the student starts from, and the search that found them, if any.

    The layers that a search finds replace `auto` in the options, so the recipe of the run lists them: a rerun starts
    from the same layers, however fast the machine is. A resumed run has the layers of its checkpoint. With several
    processes the first one searches, and the others wait for its result.

    The layers stay None only if the run goes on from a checkpoint without a record of them.

    Args:
        args: options of the run; they are not changed.
        teacher: the model to search; it moves to the device of the run.
        corpus: the prepared text.
        depth: layers of the student; half of the teacher's if None.

    Raises:
        PotstillError: the layers are to be measured, and this is not possible; see `find_layers`.
    """
    if args.layers not in (None, AUTO):
        return args, None
    args = copy.copy(args)
    if args.resume_from_checkpoint:
        args.layers = _recorded(args.resume_from_checkpoint)
        return args, None
    if args.initialise == "random":  # no layer is copied, so there is nothing to measure
        args.layers = "alternate"
        return args, None
    if args.layers is None and len(corpus.validation) == 0:
        _say(
            args,
            "The corpus has no held-out block to measure layers on, so the student starts from --layers alternate.",
        )
        args.layers = "alternate"
        return args, None
    search = None
    if args.process_index == 0:
        teacher.to(args.device)
        with fitting_memory(args, evaluation=True):
            search = find_layers(
                teacher,
                corpus,
                depth,
                args.layers_seconds,
                args.fold_token_types,
                args.per_device_eval_batch_size,
                args.max_eval_samples,
                lambda line: _say(args, line),
            )
    layers = _shared(args, teacher, search)
    args.layers = ",".join(map(str, layers))
    return args, search


def _recorded(checkpoint: str) -> str | None:
    """Return the option with which the run of a checkpoint began; None if it is not recorded.

    Any layers do then: the weights of the checkpoint replace those of the student.
    """
    record = load_run_state(checkpoint).get("run") or {}
    return record.get("options", {}).get("layers")


def _shared(args: DistillationArguments, teacher: PreTrainedModel, search: LayerSearch | None) -> list[int]:
    """Return the layers that the first process found, in every process."""
    found = [] if search is None else search.layers
    if args.world_size == 1:
        return found
    depth = teacher.config.num_hidden_layers
    padded = torch.tensor(found + [-1] * (depth - len(found)), device=args.device)
    torch.distributed.broadcast(padded, src=0)
    return [layer for layer in padded.tolist() if layer >= 0]


def _say(args: DistillationArguments, line: str) -> None:
    if args.process_index == 0:
        print(line, file=sys.stderr, flush=True)
