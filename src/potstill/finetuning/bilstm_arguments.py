"""Checks and defaults of two options of `finetune`: a new BiLSTM, and synthetic texts (Tang et al. 2019)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from potstill.arguments import parsed_mapping
from potstill.bilstm.options import BiLSTMOptions
from potstill.errors import PotstillError
from potstill.finetuning.augment_options import AugmentOptions
from potstill.tasks.task import Defaults

if TYPE_CHECKING:
    from potstill.finetuning.finetune_arguments import FinetuneArguments

BILSTM = Defaults(learning_rate=1e-3, batch_size=64, epochs=10)
"""Settings of a new BiLSTM. Its `max_length` is the task's."""

BILSTM_WEIGHTS: dict[str, Any] = {"alpha_ce": 1.0, "alpha_task": 0.0, "soft_loss": "mse"}
"""Defaults of a teacher's losses for a new BiLSTM: it learns from the teacher's logits alone, as in the paper."""


def set_bilstm(args: FinetuneArguments) -> None:
    """Check the options of a new BiLSTM, and set their defaults.

    Raises:
        PotstillError: an option is not valid, or is for transformers.
    """
    args.bilstm = parsed_mapping("bilstm", args.bilstm)
    if not args.new_bilstm:
        args._check("bilstm", args.bilstm is None, "is for --model bilstm: leave it out")
        return
    options = BiLSTMOptions.read(args.bilstm or {})
    teacher = next(iter(args.teachers), None)
    if options.tokenizer is None and teacher:  # so that the same run without the teacher begins with the same model
        options = replace(options, tokenizer=teacher, embeddings=options.embeddings or teacher)
    if options.tokenizer is None:
        raise PotstillError(
            "--model bilstm needs a tokenizer: name a model that has one in --bilstm '{tokenizer: FOLDER}', or give a "
            "--teacher."
        )
    args.bilstm = asdict(options)
    args._check("model", _is_on_texts(args), f"is for tasks on texts: name another model for {args.task}")
    for name in ("num_hidden_layers", "layers"):
        args._check(name, getattr(args, name) is None, "is for transformers: a BiLSTM has one layer")
    args._check("freeze_encoder", not args.freeze_encoder, "is for transformers: leave it out for a BiLSTM")
    args._check("alpha_cos", not args.alpha_cos, "is for transformers: leave it out for a BiLSTM")


def set_augment(args: FinetuneArguments) -> None:
    """Check the options of synthetic texts.

    Raises:
        PotstillError: an option is not valid, or nothing would teach the texts.
    """
    given = parsed_mapping("augment", args.augment)
    if given is None:
        args._check("augment", args.augment is None, "must be a number or a mapping")
        return
    args.augment = asdict(AugmentOptions.read(given))
    args._check("augment", bool(args.teacher), "makes texts that a teacher must teach: name one with --teacher")
    args._check("augment", _is_on_texts(args), f"is for tasks on texts: leave it out for {args.task}")
    args._check("augment", args.alpha_ce is None or args.alpha_ce > 0, "teaches nothing with --alpha_ce 0")
    alone = args.unlabelled_alone or args.max_train_samples == 0
    args._check("augment", not alone, "makes texts from labelled rows, and there are none")


def _is_on_texts(args: FinetuneArguments) -> bool:
    if not args.task:
        return True
    task = args.declared_task
    return task.pipeline == "text-classification" and not task.ranks
