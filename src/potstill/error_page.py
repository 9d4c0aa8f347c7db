"""Collects the messages of all errors of potstill into a page: `make errors` writes `docs/reference/errors.md`.

The source is read, not run. A part of a message that depends on the run is shown as `…`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent
PAGE = SOURCE.parents[1] / "docs" / "reference" / "errors.md"

_HEAD = """# Error messages

potstill reports a mistake in one sentence and ends with a status other than 0. These are all its messages, by
the part of potstill that raises them. `…` stands for what depends on the run: a name, a path, a number, or the
words of a library. `make errors` writes this page from the source.
"""


class Message(NamedTuple):
    """A message, and the module that raises it."""

    module: str
    text: str


def messages(folder: Path = SOURCE) -> list[Message]:
    """Return the messages of all errors that the modules of a folder raise, in the order of the source."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
    names = _error_names(trees.values())
    return [
        Message(path.relative_to(folder).with_suffix("").as_posix(), text)
        for path, tree in trees.items()
        for text in _of_module(tree, names)
    ]


def page(found: list[Message]) -> str:
    """Return the page of the messages, as Markdown."""
    parts = [_HEAD]
    module = None
    for message in found:
        if message.module != module:
            module = message.module
            parts.append(f"\n## {module}\n\n")
        parts.append(f"- {_code(message.text)}\n")
    return "".join(parts)


def _error_names(trees: Iterable[ast.Module]) -> set[str]:
    """Return the names of `PotstillError` and of the classes that inherit from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    names = {"PotstillError"}
    while more := {name for name, of in bases.items() if of & names} - names:
        names |= more
    return names


def _of_module(tree: ast.Module, names: set[str]) -> Iterator[str]:
    seen: set[str] = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args):
            continue
        text = " ".join(_text(node.args[0]).split())
        if text.strip("… .:;") and text not in seen:
            seen.add(text)
            yield text


def _text(node: ast.expr) -> str:
    """Return the text that an expression makes, with `…` for what only the run knows."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


if __name__ == "__main__":
    PAGE.write_text(page(messages()), encoding="utf-8")
