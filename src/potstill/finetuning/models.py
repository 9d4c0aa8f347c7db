"""Loads models with the head of a task, and task teachers, from folders and from the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import potstill.bilstm.model  # noqa: F401 (it registers the BiLSTM with the Auto classes)
from potstill.errors import PotstillError, first_line
from potstill.finetuning.task_heads import fit_head
from potstill.finetuning.teacher_labels import TeacherLabels, teacher_labels
from potstill.panics import panics_as_errors
from potstill.student.loading import from_files
from potstill.student.model_files import check_model_files, model_folder
from potstill.student.quiet import quiet_loading
from potstill.student.weights import Weights, check_finite
from potstill.wording import agreeing, counted

_GIVES = {"single_label_classification": "one label", "multi_label_classification": "any number of labels"}
"""`problem_type` in a config → what such a model gives a text."""

_OF_LAYER = re.compile(r"\.\d+\.")

AutoHead = (
    type[AutoModelForSequenceClassification]
    | type[AutoModelForQuestionAnswering]
    | type[AutoModelForTokenClassification]
)


def load_config(name: str, role: str = "model") -> PreTrainedConfig:
    """Read a model's config, without its weights.

    Raises:
        PotstillError: there is no such model, it has no safetensors weights, or its config cannot be read, does not fit
            the weights, or asks for code of its own.
    """
    folder, model_is = model_folder(name, role), f"the {role} {name!r}"
    raw = check_model_files(folder, model_is)
    Weights.read(folder, model_is).check_config(raw, model_is)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of several libraries
        raise PotstillError(f"the {role} {name!r} has no config that can be used: {first_line(error)}") from error
    # With this key transformers could load another file than the weights checked above, for example a pickle.
    vars(config).pop("transformers_weights", None)
    return config


def load_with_head(
    name: str,
    head: AutoHead,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    tell: Callable[[str], None] | None = None,
    **shape: Any,
) -> Any:
    """Load an encoder with a head for a task.

    A new head is initialised if the model has none, or if its labels have other names. A head with the same labels in
    another order is put into the task's order. A head for one number is kept, whatever its name is.

    Args:
        name: folder or hub name of a model whose architecture has such a head in transformers.
        head: the auto class.
        tokenizer: the model's tokenizer; its padding id is used if the model's config has none.
        seed: seed of a new head.
        tell: called with a line if a new head takes the place of a trained one.
        shape: fields of the config for the task: `num_labels`, `id2label`, `label2id`, `problem_type`.

    Raises:
        PotstillError: there is no such model, it has no such head in transformers, or its weights are damaged,
            pickled or incomplete.
    """
    config = load_config(name)
    before = [str(config.id2label[number]) for number in sorted(config.id2label)]
    vars(config).pop("threshold", None)  # of a model of several labels; a new one is chosen with the new scores
    for key, value in shape.items():
        setattr(config, key, value)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    model, report = load_as(head, name, config, "model", seed)
    inner = f"{model.base_model_prefix}."
    # BERT's encoder contains the pooler, which is part of the head. After pre-training by masked LM alone
    # there is no pooler.
    missing = sorted(key for key in report["missing_keys"] if key.startswith(inner) and ".pooler." not in key)
    if missing:
        raise PotstillError(
            f"the weights of the model {name!r} are incomplete: {counted(len(missing), 'tensor')} of its encoder "
            f"{agreeing(len(missing), 'is', 'are')} not in its files, for example {missing[0]}"
        )
    reason = fit_head(model, report, before, [*shape.get("id2label", {}).values()], seed)
    if reason is not None and tell is not None:
        tell(f"the head of the model {name!r} is new, because {reason}")
    return model


def load_task_teacher(
    name: str,
    head: AutoHead,
    labels: tuple[str, ...] | None,
    kind: str | None = None,
    role: str = "teacher",
) -> tuple[PreTrainedModel, TeacherLabels | None]:
    """Load a model that is already fine-tuned on a task.

    Args:
        name: folder or hub name.
        head: the auto class.
        labels: names of the classes; empty for a regression; None for spans.
        kind: the task's `problem_type` in a config; None if any will do.
        role: the word for the model in messages.

    Returns:
        The model, and where it has the classes of the task; None for a task without classes.

    Raises:
        PotstillError: there is no such model, it has no trained head, or its labels are not those of the task.
    """
    config = load_config(name, role)
    theirs = getattr(config, "problem_type", None)
    if kind in _GIVES and theirs in _GIVES and theirs != kind and labels:
        raise PotstillError(
            f"the {role} {name!r} gives a text {_GIVES[theirs]}, but the task gives it {_GIVES[kind]}: give one that "
            "is fine-tuned on this task"
        )
    matched = teacher_labels(name, config, labels, role) if labels else None
    if labels == () and config.num_labels != 1:
        headless = all("For" not in architecture for architecture in config.architectures or ["For"])
        has = "no head" if headless else f"{config.num_labels} labels, but the task has 1"
        raise PotstillError(f"the {role} {name!r} has {has}: give one that is fine-tuned on this task")
    return load_trained(head, name, config, role), matched


def load_trained(head: AutoHead, name: str, config: PreTrainedConfig, role: str) -> PreTrainedModel:
    """Load a model with its trained head in float32, in evaluation mode and without gradients.

    Raises:
        PotstillError: see `load_as`; or the head, or another part, is not in the files.
    """
    model, report = load_as(head, name, config, role)
    untrained = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if untrained:
        raise PotstillError(
            f"the {role} {name!r} has no trained head for this task (its weights lack {untrained[0]}): "
            "fine-tune it first and give the folder of the result"
        )
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def load_as(head: Any, name: str, config: PreTrainedConfig, role: str, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """Load a model in float32 with a head, and return it with the loading report of transformers.

    Args:
        head: auto class of the head.
        name: folder or hub name.
        config: the model's config.
        role: the word for the model in messages.
        seed: seed of weights that its files lack.

    Raises:
        PotstillError: there is no such model, its weights are damaged, do not fit its config or are not all finite
            numbers, or it has no such head.
    """
    folder = model_folder(name, role)
    with quiet_loading(), panics_as_errors(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model, report = from_files(head, folder, config, torch.float32)
        except Exception as error:  # a bad file can cause errors of many types in several libraries
            kind = head.__name__.removeprefix("AutoModelFor")
            task = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
            if isinstance(error, SafetensorError):
                reason = f"its weights are damaged or incomplete: copy or download it again ({first_line(error)})"
            else:
                reason = first_line(error)
            raise PotstillError(f"the {role} {name!r} cannot be loaded with a head for {task}: {reason}") from error
    inner = f"{model.base_model_prefix}."
    mismatched = sorted(key for key, *_ in report["mismatched_keys"] if key.startswith(inner))
    if mismatched:
        raise PotstillError(f"the weights of the {role} {name!r} do not fit its config, for example {mismatched[0]}")
    surplus = sorted(key for key in report["unexpected_keys"] if key.startswith(inner) and _OF_LAYER.search(key))
    if surplus:
        raise PotstillError(
            f"the weights of the {role} {name!r} do not fit its config, which has no place for {surplus[0]}"
        )
    check_finite(model, f"the {role} {name!r}")
    return model, report
