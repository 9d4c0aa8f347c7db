"""Command-line options made from typed signatures and dataclasses, and filled from flags and YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from potstill.errors import PotstillError
from potstill.recipe_file import read_recipe

Positional = Annotated[str, "positional"]
"""Type of a parameter of a verb that may be given without its name: `potstill compare results/`."""

YAML_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
SWITCHES = ("resume_from_checkpoint",)
"""Words that may be `true` or `false` too."""


class UsageError(PotstillError):
    """The command line or a recipe file cannot be understood."""

    exit_status = 2


class _Parser(HfArgumentParser):
    """A parser that tells what is wrong in one sentence instead of printing the usage of 150 options first."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that there is one place that prints errors."""
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}; see `{self.prog} --help`.")


def call(verb: Callable[..., Any], prog: str, argv: Sequence[str]) -> Any:
    """Call a verb with the options that the command line and its `--config` file give.

    A verb is a function whose parameters are its options, or one that takes a single dataclass whose fields are. A
    recipe file is read as if its lines stood on the command line before everything else, so it is checked by the same
    rules, and flags overrule it. A parameter marked `Positional` may stand without its name.

    Args:
        verb: the function to call.
        prog: what the user typed to get here, for messages.
        argv: the rest of the command line.

    Raises:
        UsageError: an unknown option, a value of the wrong type or a missing one, named.
    """
    hints = get_type_hints(verb)
    parameters = inspect.signature(verb).parameters
    only: Any = hints[next(iter(parameters))] if len(parameters) == 1 else None
    recipe: Any = only if dataclasses.is_dataclass(only) else None
    groups = _recipe_groups(recipe) if recipe else [_signature_group(verb)]
    parser = _Parser(groups, prog=prog, description=(inspect.getdoc(verb) or "").split("\n\n")[0], allow_abbrev=False)
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:  # `--bf16` alone is true where None is a value too
            action.nargs, action.const = "?", True
    words = [] if recipe else _add_positionals(parser, verb)
    parser.add_argument("--config", metavar="FILE", help="YAML recipe: options by name; flags overrule it.")
    files = _Parser((), prog=prog, add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    file = files.parse_known_args(argv)[0].config
    values = vars(parser.parse_args([*(_as_flags(Path(file), groups) if file else []), *argv]))
    values.pop("config")
    for name in words:
        if (word := values.pop(f"{name} word", None)) is not None:
            values[name] = word
        if name not in values:
            parser.error(f"the following arguments are required: {name}")
    return verb(recipe(**values)) if recipe else verb(**values)


def _add_positionals(parser: _Parser, verb: Callable[..., Any]) -> list[str]:
    """Let parameters marked `Positional` be given as words too, and return their names; a word overrules the option."""
    hints = get_type_hints(verb, include_extras=True)
    names = [name for name in inspect.signature(verb).parameters if hints[name] == Positional]
    for name in names:
        option = parser._option_string_actions[f"--{name}"]
        option.required, option.default = False, SUPPRESS  # whether it was given is asked once both have been read
        parser.add_argument(
            f"{name} word", metavar=name.upper(), nargs="?", default=SUPPRESS, help=f"The same as --{name}."
        )
    return names


def _recipe_groups(recipe: type) -> list[type]:
    """Return two groups of options: potstill's own first, then those inherited from `TrainingArguments`."""
    hints = get_type_hints(recipe)
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    groups = []
    for title, wanted in (("potstill", False), ("transformers.TrainingArguments", True)):
        options = [
            (f.name, hints[f.name], dataclasses.field(**_default(f), metadata=f.metadata))
            for f in dataclasses.fields(recipe)
            if f.init and (f.name in inherited) == wanted
        ]
        groups.append(_group(title, options))
    return groups


def _signature_group(function: Callable[..., Any]) -> type:
    """Return the parameters of a function as one group of options, helped by the `Args:` of its docstring."""
    hints, helps = get_type_hints(function), _documented_arguments(function)
    options = []
    for name, parameter in inspect.signature(function).parameters.items():
        metadata = {"help": helps.get(name, "")}
        if parameter.default is parameter.empty:
            options.append((name, hints[name], dataclasses.field(metadata=metadata)))
        else:
            options.append((name, hints[name], dataclasses.field(default=parameter.default, metadata=metadata)))
    return _group("options", options)


def _group(title: str, options: list[tuple[str, Any, Any]]) -> type:
    return dataclasses.make_dataclass(
        "Options", options, kw_only=True, namespace={"_argument_group_name": title}, frozen=True
    )


def _default(field: dataclasses.Field) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {"default": field.default}


def _documented_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Return {name: help} from the `Args:` section of a Google-style docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(function) or "", re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*?)(?=^ {4}\S|\Z)", section[1], re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).replace("%", "%%") for name, text in entries}


def _as_flags(file: Path, groups: list[type]) -> list[str]:
    """Return a recipe file as command-line flags.

    Raises:
        RecipeError: the file cannot be read, or is no mapping.
        UsageError: it has a field that is no option.
    """
    known = {f.name: f.type for group in groups for f in dataclasses.fields(group)}
    flags = []
    for name, value in read_recipe(file).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UsageError(f"The recipe {file} has the unknown option {name!r}{hint}")
        if isinstance(value, list) and known[name] in (str, str | None):
            flags.append(f"--{name}={','.join(value)}")  # `layers: [0, 2]` is what YAML suggests
        elif isinstance(value, list):
            flags += [f"--{name}", *value]
        elif known[name] in (bool, bool | None) or name in SWITCHES:
            flags.append(f"--{name}={YAML_WORDS.get(value.lower(), value)}")
        else:
            flags.append(f"--{name}={value}")
    return flags
