"""Derive the options of a verb from its typed signature, or from the dataclass that it takes."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

import potstill
from potstill.command_line import Kind, Option, UsageError, Verb, parse

__all__ = ["Positional", "Positionals", "UsageError", "apply", "call", "describe", "sources"]

Positional = Annotated[str, "positional"]
"""Type of a verb's parameter whose value may be given without its name: `potstill serve model/`."""

Positionals = Annotated[str | list[str], "positional"]
"""The same for several values: `potstill compare teacher-sst2/ student-sst2/`. In Python one may be a `str`."""

NO_TEXT = ("parallelism_config",)
"""Options of `TrainingArguments` whose values are objects that cannot be written as text."""

INHERITED_HELP = {
    "num_train_epochs": "Passes over the data.",
    "max_steps": "Steps of the optimiser; a number above 0 overrules --num_train_epochs.",
    "per_device_train_batch_size": "Rows per device in a micro-batch.",
    "gradient_accumulation_steps": "Micro-batches in a step.",
    "learning_rate": "Peak learning rate.",
    "bf16": "Compute in bfloat16; the weights stay in float32.",
    "use_cpu": "Train on the CPU even if there is a GPU.",
    "torch_compile": "Compile the model: the start is slower, the steps are faster.",
    "save_steps": "Steps between two checkpoints.",
    "save_strategy": "When to save checkpoints: no, steps, epoch or best.",
    "report_to": "Where to log: tensorboard, wandb, ... or none.",
    "seed": "Seed of all random numbers.",
}
"""Help texts for common options of `TrainingArguments`, shorter than those of transformers."""


def call(verb: Callable[..., Any], prog: str, argv: Sequence[str]) -> Any:
    """Call a verb with the options that the command line and its `--config` file give.

    Args:
        verb: a function whose options are its parameters, or the fields of the single dataclass that it takes.
        prog: the program and the verb as the user typed them, for messages.
        argv: the rest of the command line.

    Raises:
        UsageError: an option is unknown or missing, or its value has the wrong type; the message names the option.
    """
    return apply(verb, parse(describe(verb), prog, argv))


def apply(verb: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Call a verb with the values of some options. The others have the defaults of its signature or dataclass."""
    recipe = _recipe(verb)
    return verb(recipe(**values)) if recipe else verb(**values)


def describe(verb: Callable[..., Any]) -> Verb:
    """Return the description of a verb, which its signature alone decides.

    The help of a parameter comes from `Args:` of the docstring, and the help of a field from its metadata.
    """
    recipe = _recipe(verb)
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)} if recipe else set()
    own = {name for cls in _ours(recipe) for name in inspect.get_annotations(cls)}
    not_offered: frozenset[str] = getattr(recipe, "not_offered", frozenset())
    summary = " ".join((inspect.getdoc(verb) or "").split("\n\n")[0].split())
    hints = get_type_hints(verb, include_extras=True)
    options = []
    for action in HfArgumentParser([_group(verb, recipe)], add_help=False)._actions:
        name = action.dest
        if action.nargs == 0 or name in NO_TEXT:  # nargs is 0 for `--no_name`, which follows from the default
            continue
        of_transformers = name in inherited - own
        text = INHERITED_HELP.get(name, action.help) if of_transformers else action.help
        options.append(
            Option(
                name,
                _kind(action.type),
                " ".join((text or "").split()).replace("%%", "%"),
                _shown(action.default),
                tuple(map(str, action.choices or ())),
                many=action.nargs == "+",
                required=action.required,
                positional="positional" in getattr(hints.get(name), "__metadata__", ()),
                offered=name not in not_offered,
                inherited=of_transformers,
            )
        )
    return Verb(summary, tuple(options))


def sources(verb: Callable[..., Any]) -> list[Path]:
    """Return the files of this package that declare the options of a verb."""
    recipe = _recipe(verb)
    modules = [verb.__module__, *(cls.__module__ for cls in _ours(recipe))]
    modules += [read for name in modules for read in getattr(sys.modules[name], "OPTIONS_READ", ())]
    return sorted({Path(sys.modules[name].__file__ or "") for name in modules})


def _ours(recipe: Any) -> list[type]:
    """Return the classes of this package from which a dataclass inherits, itself included."""
    return [cls for cls in getattr(recipe, "__mro__", ()) if cls.__module__.partition(".")[0] == potstill.__name__]


def _recipe(verb: Callable[..., Any]) -> Any:
    """Return the dataclass that a verb takes as its only parameter; None if its parameters are its options."""
    hints = get_type_hints(verb)
    parameters = inspect.signature(verb).parameters
    only: Any = hints[next(iter(parameters))] if len(parameters) == 1 else None
    return only if dataclasses.is_dataclass(only) else None


def _group(verb: Callable[..., Any], recipe: Any) -> Any:
    """Return the options as fields of one dataclass, which `HfArgumentParser` can read."""
    options: list[tuple[str, Any, Any]] = []
    if recipe:
        hints = get_type_hints(recipe)
        for f in dataclasses.fields(recipe):
            if f.init:
                options.append((f.name, hints[f.name], dataclasses.field(**_default(f), metadata=f.metadata)))
    else:
        hints, helps = get_type_hints(verb), _documented_arguments(verb)
        for name, parameter in inspect.signature(verb).parameters.items():
            default = {} if parameter.default is parameter.empty else {"default": parameter.default}
            options.append((name, hints[name], dataclasses.field(metadata={"help": helps.get(name, "")}, **default)))
    return dataclasses.make_dataclass("Options", options, kw_only=True, frozen=True)


def _default(field: dataclasses.Field) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {"default": field.default}


def _kind(type_: Any) -> Kind:
    if type_ is string_to_bool:
        return "bool"
    if type_ in (int, float):
        return "int" if type_ is int else "float"
    return "str"  # for example a choice or JSON


def _shown(default: Any) -> str:
    """Return a default as a recipe writes it; an empty text if there is none."""
    if default is None or default is SUPPRESS or default == []:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return str(default.value if isinstance(default, Enum) else default)


def _documented_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Return {name: help} from the `Args:` section of a Google-style docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(function) or "", re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*?)(?=^ {4}\S|\Z)", section[1], re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in entries}
