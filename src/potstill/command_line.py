"""What a command line and a recipe file say, read by the options that a verb has. Nothing heavy is imported for it."""

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
"""Words that may be true or false too."""


class UsageError(PotstillError):
    """The command line or a recipe file cannot be understood."""

    exit_status = 2


@dataclass(frozen=True)
class Option:
    """One option of a verb: a flag of the command line and a key of a recipe, by the same name.

    Attributes:
        name: with underscores.
        kind: of its value.
        help: a sentence or two.
        default: what holds where it is not given, as it is shown; empty where the help says it.
        choices: the words that it may be; any if empty.
        many: whether it takes several values.
        required: whether a verb cannot do without it.
        word: whether it may stand without its name; all its values, if it takes several.
        offered: whether help shows it. An option that a verb refuses is read all the same, for the verb says why.
        inherited: whether it is an option of `transformers.TrainingArguments` that potstill leaves as it is.
    """

    name: str
    kind: Kind
    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False
    required: bool = False
    word: bool = False
    offered: bool = True
    inherited: bool = False

    @property
    def negatable(self) -> bool:
        """Whether `--no_name` switches off what is on."""
        return self.kind == "bool" and self.default == "true"


@dataclass(frozen=True)
class Verb:
    """What a verb is and takes.

    Attributes:
        summary: what it does, in a sentence or two.
        options: in the order in which they are declared.
    """

    summary: str
    options: tuple[Option, ...]


class _Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one sentence instead of printing the usage of 150 options first."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that there is one place that prints errors."""
        message = message.removeprefix("argument ")
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}; see `{self.prog} --help`.")


def parse(verb: Verb, prog: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return the values of the options that the command line and its `--config` file give, and of no others.

    A recipe file is read as if its lines stood on the command line before everything else, so it is checked by the same
    rules, and flags overrule it. A hyphen in the name of an option is an underscore.

    Args:
        verb: whose options they are.
        prog: what the user typed to get here, for messages.
        argv: the rest of the command line.

    Raises:
        UsageError: an unknown option, a value of the wrong type or a missing one, named.
        RecipeError: the recipe file cannot be read.
    """
    argv = [_underscored(part) for part in argv]
    parser = _parser(verb, prog)
    files = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    file = files.parse_known_args(argv)[0].config
    flags = _as_flags(Path(file), verb) if file else []
    # Words may stand before, between and after the flags, which `parse_known_args` does not read.
    found, unknown = parser.parse_known_intermixed_args([*flags, *argv])
    if unknown:
        _refuse(unknown, verb, parser)
    values = vars(found)
    values.pop("config", None)
    for option in verb.options:
        if option.word and (word := values.pop(f"{option.name} word", None)) not in (None, []):
            values[option.name] = word
    missing = [f"--{option.name}" for option in verb.options if option.required and option.name not in values]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        parser.error(f"{names} {'is' if len(missing) == 1 else 'are'} missing")
    return values


def _underscored(part: str) -> str:
    """Return an argument with the hyphens of an option's name as underscores."""
    if not part.startswith("--") or part == "--":
        return part
    name, equals, value = part[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _parser(verb: Verb, prog: str) -> _Parser:
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    for option in verb.options:
        if option.kind == "bool":  # `--bf16` alone is true where None is a value too
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
        if option.word:
            count = "*" if option.many else "?"
            parser.add_argument(f"{option.name} word", metavar=option.name.upper(), nargs=count)
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
    """Tell of an argument that is no option, with the option that it may be meant for."""
    flag = next((part for part in unknown if part.startswith("-")), None)
    if flag is None:
        parser.error(f"there is no use for {' '.join(unknown)}: a value belongs behind the name of its option")
    name = flag.partition("=")[0]
    near = nearest(name.lstrip("-"), verb)
    parser.error(f"there is no option {name}" + (f"; the nearest is --{near}" if near else ""))


def nearest(name: str, verb: Verb) -> str | None:
    """Return the name of the option that is most like a word, None if none is like it."""
    known = [*(option.name for option in verb.options), "config", "help", "help_all"]
    known += [f"no_{option.name}" for option in verb.options if option.negatable]
    close = difflib.get_close_matches(name, known, 1)
    # Part of a name is meant for all of it, though the two are not alike: batch_size.
    longer = [option for option in known if len(name) > 2 and name in option]
    return next(iter([*close, *sorted(longer, key=len)]), None)


def _as_flags(file: Path, verb: Verb) -> list[str]:
    """Return a recipe file as command-line flags.

    Raises:
        RecipeError: the file cannot be read, or is no mapping.
        UsageError: it has a field that is no option.
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
            flags.append(f"--{name}={','.join(value)}")  # `layers: [0, 2]` is what YAML suggests
        elif isinstance(value, list):
            flags += [f"--{name}", *value]
        elif name in SWITCHES and value.lower() in ("yes", "on", "no", "off"):
            flags.append(f"--{name}={'true' if value.lower() in TRUE else 'false'}")
        else:
            flags.append(f"--{name}={value}")
    return flags
