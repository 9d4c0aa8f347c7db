"""Read YAML that anybody may have written: a recipe, or the declaration of a task.

A few lines of YAML can stand for billions of values, through aliases of aliases (`*name`), or for a value that contains
itself. Both are refused before anything is made of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import yaml

from potstill.small_files import MOST_YAML_BYTES, read_small

MOST_VALUES = 100_000
"""The largest number of values in a file, each alias counted as what it stands for."""


DEEPEST = 100
"""The largest depth of values in values."""


class Loader(yaml.SafeLoader):
    """Makes values of plain types, and stops at a depth that PyYAML would take long to reach."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next value, with all that is in it.

        Raises:
            ValueError: it is nested more deeply than `DEEPEST`.
        """
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError("its values are nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml_text(path: str | os.PathLike[str], pipes: bool = False) -> str:
    """Return the text of a YAML file; `pipes` says whether it may be a pipe.

    Raises:
        NotSmallError: it is too large for such a file.
        OSError, ValueError: it cannot be read, or is not UTF-8.
    """
    return read_small(path, MOST_YAML_BYTES, pipes).decode("utf-8-sig")


def check_nodes(root: yaml.Node | None) -> None:
    """Make sure that the aliases in a text unfold to a value of a reasonable size, and that its texts are texts.

    Args:
        root: of the text, as `yaml.compose` returns it.

    Raises:
        ValueError: they do not.
    """
    sizes: dict[int, int | None] = {}  # of each node, with all that its aliases stand for; None while it is unfolded

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise ValueError(f"line {node.start_mark.line + 1} contains itself")
        if not known:
            if isinstance(node, yaml.ScalarNode):
                _check_text(node)
            sizes[id(node)] = None
            known = 1 + sum(map(size, _inside(node)))
            if known > MOST_VALUES:
                raise ValueError(f"its aliases unfold to more than {MOST_VALUES:,} values")
            sizes[id(node)] = known
        return known

    if root is not None:
        size(root)


def _check_text(node: yaml.ScalarNode) -> None:
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        where = f"line {node.start_mark.line + 1}"
        raise ValueError(f"{where} holds half of a surrogate pair, which is no character") from error


def _inside(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    return [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else ()


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text, of plain types alone.

    Raises:
        ValueError, yaml.YAMLError: the text is no YAML, or stands for a value that cannot be used.
    """
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        check_nodes(root)
        return None if root is None else loader.construct_document(root)
    except (TypeError, AttributeError, IndexError, KeyError, OverflowError) as error:  # PyYAML's own faults
        raise ValueError(f"it has a value that cannot be read ({type(error).__name__})") from error
    finally:
        loader.dispose()
