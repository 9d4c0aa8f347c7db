"""The teacher layers of a run: those that its options name, those that a search finds, or those that it began with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import Corpus, ShuffledSampler
from potstill.live_line import say
from potstill.recipe import DistillationArguments
from potstill.student.layers import AUTO
from potstill.training.checkpoints import load_run_state
from potstill.training.layer_search import Choices, LayerSearch, check_held_out, find_layers
from potstill.training.memory import fitting_memory
from potstill.training.new_student import new_student
from potstill.training.parts import gather_parts


def decide_layers(
    args: DistillationArguments,
    teachers: Sequence[PreTrainedModel],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    sizes: dict[str, int | None],
) -> tuple[DistillationArguments, LayerSearch | None]:
    """Return the options with the layers that the student starts from, and the search that found them, if any.

    The layers that a search finds replace `auto` in the options, so the recipe of the run lists them: a rerun starts
    from the same layers, however fast the machine is. A resumed run has the layers of its checkpoint. With several
    processes the first one searches, and the others wait for its result.

    The layers stay None only if the run goes on from a checkpoint without a record of them.

    Args:
        args: options of the run; they are not changed.
        teachers: of the run. The first one is searched; it moves to the device of the run.
        corpus: the prepared text.
        tokenizer: of the teachers.
        sizes: of the student, see `choose_sizes`.

    Raises:
        PotstillError: the layers are to be measured, and this is not possible (see `find_layers`), or something else in
            the run does not fit together. That is found before the search, because the search takes time.
    """
    teacher, depth = teachers[0], sizes["num_hidden_layers"]

    def search(report: Callable[[str], None]) -> LayerSearch:
        teacher.to(args.device)
        size, most = args.per_device_eval_batch_size, args.max_eval_samples
        return find_layers(teacher, corpus, depth, args.layers_seconds, args.fold_token_types, size, most, report)

    return decide_by(args, teacher, corpus, lambda: _check_run(args, teachers, corpus, tokenizer, sizes), search)


def decide_by(
    args: DistillationArguments,
    teacher: PreTrainedModel,
    corpus: Corpus,
    check: Callable[[], object],
    search: Callable[[Callable[[str], None]], LayerSearch],
) -> tuple[DistillationArguments, LayerSearch | None]:
    """Do what `decide_layers` says, with any search.

    Args:
        args: options of the run; they are not changed.
        teacher: whose layers are chosen.
        corpus: the prepared text.
        check: makes the checks of the run, before the search.
        search: searches, and reports lines of progress.
    """
    if args.layers not in (None, AUTO):
        return args, None
    args = copy.copy(args)
    args.layers_seconds = type(args).layers_seconds  # the recipe has the layers that are found, and no search
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
    check_held_out(corpus)
    check()
    found = None
    if args.process_index == 0:
        with fitting_memory(args, evaluation=True):
            found = search(lambda line: _say(args, line))
    layers = _shared(args, teacher, found)
    args.layers = ",".join(map(str, layers))
    return args, found


def _check_run(
    args: DistillationArguments,
    teachers: Sequence[PreTrainedModel],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    sizes: dict[str, int | None],
) -> None:
    """Make the checks that the trainer makes, with a student of the same shape."""
    alike = copy.copy(args)
    any_layers = next(Choices(teachers[0], sizes["num_hidden_layers"]).of_rules())
    alike.layers, alike.initialise = ",".join(map(str, any_layers)), "random"
    gather_parts(new_student(alike, teachers[0], corpus, sizes), corpus, args, teachers, tokenizer)
    ShuffledSampler(len(corpus.train), args.blocks_per_step, args.seed)


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
        say(line)
