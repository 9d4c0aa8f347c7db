"""Read a command line and a recipe file by the options of a verb. This module imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from potstill.errors import PotstillError
from potstill.recipe_file import read_recipe

Kind = Literal["str", "int", "float", "bool"]

TRUE, FALSE = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")
SWITCHES = ("resume_from_checkpoint",)
"""Text options whose value may also be true or false."""


class UsageError(PotstillError):
    """The command line or a recipe file cannot be understood."""

    exit_status = 2


@dataclass(frozen=True)
class Option:
    """One option of a verb: a flag of the command line and a key of a recipe with the same name.

    Attributes:
        name: the name with underscores.
        kind: the type of the value.
        help: a sentence or two.
        default: the default as help shows it; empty if the help text explains it.
        choices: the words that are allowed; if empty, any value is.
        many: whether the option takes several values.
        required: whether the verb needs the option.
        positional: whether its value, or all its values, may be given without the name.
        offered: whether help shows the option. An option that a verb refuses is still read, because the verb says why
            it refuses it.
        inherited: whether it is an option of `transformers.TrainingArguments` that potstill leaves unchanged.
    """

    name: str
    kind: Kind
    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False
    required: bool = False
    positional: bool = False
    offered: bool = True
    inherited: bool = False

    @property
    def negatable(self) -> bool:
        """Whether the option has a flag `--no_name`, because it is true by default."""
        return self.kind == "bool" and self.default == "true"


@dataclass(frozen=True)
class Verb:
    """The description of a verb.

    Attributes:
        summary: what the verb does, in a sentence or two.
        options: its options in the order of their declaration.
    """

    summary: str
    options: tuple[Option, ...]


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one sentence instead of printing the usage of 150 options first."""

    def error(self, message: str) -> NoReturn:
        """Raise an error instead of exiting, so that only one place prints errors."""
        message = message.removeprefix("argument ")
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}; see `{self.prog} --help`.")


def parse(verb: Verb, prog: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return the values of only those options that the command line or its `--config` file gives.

    The lines of a recipe file are read like flags before all others on the command line. So the same rules check them,
    and flags overrule them. A hyphen in the name of an option means an underscore.

    Args:
        verb: the verb that has the options.
        prog: the program and the verb as the user typed them, for messages.
        argv: the rest of the command line.

    Raises:
        UsageError: an option is unknown or missing, or its value has the wrong type; the message names the option.
        RecipeError: the recipe file cannot be read.
    """
    argv = [_underscored(part) for part in argv]
    parser = _parser(verb, prog)
    files = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    file = files.parse_known_args(argv)[0].config
    flags = _as_flags(Path(file), verb) if file else []
    # `parse_known_args` does not read positional values before, between and after the flags.
    found, unknown = parser.parse_known_intermixed_args([*flags, *argv])
    if unknown:
        _refuse(unknown, verb, parser)
    values = vars(found)
    values.pop("config", None)
    for option in verb.options:
        if option.positional and (value := values.pop(f"{option.name} positional", None)) not in (None, []):
            values[option.name] = value
    missing = [f"--{option.name}" for option in verb.options if option.required and option.name not in values]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        parser.error(f"{names} {'is' if len(missing) == 1 else 'are'} missing")
    return values


def _underscored(part: str) -> str:
    """Return an argument with underscores instead of hyphens in the name of its option."""
    if not part.startswith("--") or part == "--":
        return part
    name, equals, value = part[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _parser(verb: Verb, prog: str) -> _Parser:
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    for option in verb.options:
        if option.kind == "bool":  # `--bf16` without a value means true
            parser.add_argument(f"--{option.name}", type=_bool, nargs="?", const=True)
        else:
            parser.add_argument(
                f"--{option.name}",
                type=_READ[option.kind],
                nargs="+" if option.many else None,
                choices=option.choices or None,
            )
        if option.negatable:
            parser.add_argument(f"--no_{option.name}", dest=option.name, action="store_false")
        if option.positional:
            count = "*" if option.many else "?"
            parser.add_argument(f"{option.name} positional", metavar=option.name.upper(), nargs=count)
    return parser


def _bool(text: str) -> bool:
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 1e5 is a whole number too
        if not number.is_integer():
            raise
        return int(number)


_int.__name__ = "int"  # argparse names the type by this
_READ: dict[Kind, Callable[[str], Any]] = {"str": str, "int": _int, "float": float, "bool": _bool}


def _refuse(unknown: list[str], verb: Verb, parser: _Parser) -> NoReturn:
    """Report an argument that is no option, and name the option that the user may have meant."""
    flag = next((part for part in unknown if part.startswith("-")), None)
    if flag is None:
        parser.error(f"there is no option for {' '.join(unknown)}: write a value after the name of its option")
    name = flag.partition("=")[0]
    near = nearest(name.lstrip("-"), verb)
    parser.error(f"there is no option {name}" + (f"; the nearest is --{near}" if near else ""))


def nearest(name: str, verb: Verb) -> str | None:
    """Return the name of the option that is most similar to a word, or None if none is similar."""
    known = [*(option.name for option in verb.options), "config", "help", "help_all"]
    known += [f"no_{option.name}" for option in verb.options if option.negatable]
    close = difflib.get_close_matches(name, known, 1)
    # The user may write a part of a name that is not similar to the whole, such as batch_size.
    longer = [option for option in known if len(name) > 2 and name in option]
    return next(iter([*close, *sorted(longer, key=len)]), None)


def _as_flags(file: Path, verb: Verb) -> list[str]:
    """Return a recipe file as command-line flags.

    Raises:
        RecipeError: the file cannot be read, or is not a mapping.
        UsageError: the file has a key that is no option.
    """
    known = {option.name: option for option in verb.options}
    flags = []
    for name, value in read_recipe(file).items():
        option = known.get(name)
        if option is None:
            near = nearest(name, verb)
            hint = f"; did you mean {near}?" if near in known else "."
            raise UsageError(f"The recipe {file} has the unknown option {name!r}{hint}")
        if isinstance(value, list) and option.kind == "str" and not option.many:
            flags.append(f"--{name}={','.join(value)}")  # users of YAML write `layers: [0, 2]`
        elif isinstance(value, list):
            flags += [f"--{name}", *value]
        elif name in SWITCHES and value.lower() in ("yes", "on", "no", "off"):
            flags.append(f"--{name}={'true' if value.lower() in TRUE else 'false'}")
        else:
            flags.append(f"--{name}={value}")
    return flags
