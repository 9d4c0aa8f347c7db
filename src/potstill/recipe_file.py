"""Read recipe files: YAML whose values are read as text, by the rules of the command line.

YAML has its own rules for values without quotes: `no` and `on` are truth values, `5e-4` is a word, `2026-01-01` is a
date, `1.10` is the number 1.1, `0123` is 83 and `12:30` is 750. A user who writes `eval_strategy: no` means the word.
So the option decides the type of a value, not YAML.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import PotstillError, first_line
from potstill.small_files import NotSmallError
from potstill.yaml_files import Loader, check_nodes, read_yaml_text

Value = str | list[str]
NULL = "tag:yaml.org,2002:null"


class RecipeError(PotstillError):
    """A recipe file cannot be understood."""

    exit_status = 2


def read_recipe(file: Path) -> dict[str, Value]:
    """Return the options in a recipe file in order, with their values as on a command line.

    A mapping becomes JSON. An option without a value, or with `null` or `~`, is left out.

    Args:
        file: a YAML file with one option per line.

    Raises:
        RecipeError: the file cannot be read, is not a mapping, or names an option twice.
    """
    try:
        loader = Loader(read_yaml_text(file, pipes=True))
        try:
            root = loader.get_single_node()
            check_nodes(root)
            return _options(loader, root, file)
        finally:
            loader.dispose()
    except OSError as error:
        raise RecipeError(f"The recipe {file} cannot be read: {error.strerror or first_line(error)}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"The recipe {file} cannot be read: it is not UTF-8 text.") from error
    except NotSmallError as error:
        raise RecipeError(str(error)) from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"The recipe {file} cannot be read: {' '.join(str(error).split())}.") from error


def _options(loader: yaml.SafeLoader, root: yaml.Node | None, file: Path) -> dict[str, Value]:
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"The recipe {file} must be lines of `option: value`.")
    names = [key.value for key, _ in root.value if isinstance(key, yaml.ScalarNode)]
    twice = next((name for name, times in Counter(names).items() if times > 1 and name != "<<"), None)
    if twice is not None:
        raise RecipeError(f"The recipe {file} names {twice} twice: leave one out.")
    loader.flatten_mapping(root)  # options merged by `<<` come first, so that own lines overrule them
    found: dict[str, Value] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"The recipe {file}, line {line}, must be `option: value`.")
        found.pop(key.value, None)
        if value.tag != NULL:
            found[key.value] = _value(loader, value, f"The recipe {file}, line {line}: {key.value}")
    return found


def _value(loader: yaml.SafeLoader, node: yaml.Node, where: str) -> Value:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(part, yaml.ScalarNode) for part in node.value):
            raise RecipeError(f"{where} is a list of lists or mappings: give a list of words or numbers.")
        return [str(part.value) for part in node.value]
    try:
        values: Any = loader.construct_object(node, deep=True)
        return json.dumps(values)
    except (TypeError, AttributeError, IndexError, OverflowError) as error:  # for example a date
        raise RecipeError(f"{where} holds a value that is no JSON ({first_line(error)}): put it in quotes.") from error
