"""Where the model of a run is loaded from: the folder that the user named, or that of a new BiLSTM."""

from __future__ import annotations

from typing import Any

from potstill.bilstm.options import NAME, BiLSTMOptions
from potstill.finetuning.finetune_arguments import FinetuneArguments


def model_source(args: FinetuneArguments) -> str:
    """Return the folder or hub name that the model of a run is loaded from.

    A new BiLSTM is made in the cache, so that it is loaded like any other model.

    Raises:
        PotstillError: see `new_bilstm`.
    """
    if args.model != NAME:
        return args.model or ""
    from potstill.bilstm.new import new_bilstm

    teacher = next(iter(args.teachers), None)
    with args.main_process_first(local=False, desc="a new BiLSTM"):
        return str(new_bilstm(BiLSTMOptions.read(args.bilstm), teacher, reads_pairs(args)))


def reads_pairs(args: FinetuneArguments) -> bool:
    """Return whether the rows of a run's task are pairs of texts."""
    task: Any = args.declared_task
    table = getattr(task, "hub", None)
    return (
        getattr(table, "pair", None) is not None if task.own_files is False else args.own_files.pair_column is not None
    )
