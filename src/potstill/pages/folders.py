"""Finds out which verb wrote a folder or a file, and reads what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from potstill.arguments import RECIPE
from potstill.errors import PotstillError
from potstill.evaluation.results import PLAN
from potstill.export.format import SUMMARY
from potstill.finetuning.result import RESULTS
from potstill.json_files import read_json, read_object


class Kind(Enum):
    """What wrote a folder or a file, in the words of the page."""

    TRAINING = "distill or pretrain"
    TASK = "finetune or prune"
    EVALUATION = "evaluate"
    EXPORT = "export"
    INFERENCE = "bench inference"
    SPEED = "bench train"


MARKS = (PLAN, SUMMARY, RESULTS)
"""The files by which a folder is recognised, the first one that it has."""


@dataclass(frozen=True)
class Found:
    """One run, evaluation, export or measurement.

    Attributes:
        kind: what wrote it.
        name: its name on the page.
        named: whether the user gave this name.
        path: its folder, or the file of a measurement.
        file: the file that was read.
        record: the content of that file.
        recipe: the options in its `recipe.yaml`; empty if it has none.
    """

    kind: Kind
    name: str
    named: bool
    path: Path
    file: Path
    record: Mapping[str, Any]
    recipe: Mapping[str, Any]


def find(arguments: Sequence[str]) -> list[Found]:
    """Return what the folders and files hold, each with a name of its own.

    A folder without results of its own stands for the folders and files in it that have some.

    Args:
        arguments: folders or files, or NAME=FOLDER.

    Raises:
        PotstillError: there is no such folder, it holds no results, or they are damaged.
    """
    if not arguments:
        raise PotstillError("DIR is missing: name folders that potstill wrote.")
    found: list[Found] = []
    for argument in arguments:
        name, path = _split(argument)
        if not path.exists():
            raise PotstillError(f"There is no folder {path}: name one that potstill wrote.")
        one = _read(path, name)
        several = [one] if one is not None else [each for each in _inside(path) if each is not None]
        if not several:
            raise PotstillError(
                f"{path} holds no results: name a folder that distill, pretrain, finetune, prune, evaluate or export "
                "wrote, or the JSON file of bench train or bench inference."
            )
        if name is not None and one is None:
            raise PotstillError(f"{argument}: {path} holds several results, so it cannot have one name: leave it out.")
        found += [one for one in several if one.path.resolve() not in {other.path.resolve() for other in found}]
    return _with_own_names(found)


def checked(one: Found, build: Callable[[], Any]) -> Any:
    """Return what `build` makes of a record.

    Raises:
        PotstillError: the record does not have the form that its verb writes.
    """
    try:
        return build()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PotstillError(
            f"{one.file} is damaged, or another version of potstill wrote it ({type(error).__name__}: {error}): leave "
            "it out, or do the run again."
        ) from error


def _inside(folder: Path) -> Iterator[Found | None]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or not (path.is_dir() or path.suffix == ".json"):
                continue
            if path.is_dir() and not any((path / mark).is_file() for mark in MARKS):
                continue
            yield _read(path, None)


def _split(argument: str) -> tuple[str | None, Path]:
    folder = Path(argument).expanduser()
    name, equals, path = argument.partition("=")
    if equals and name and path and not folder.exists():
        return name, Path(path).expanduser()
    return None, folder


def _read(path: Path, name: str | None) -> Found | None:
    """Return what a folder or file holds; None if it is not one of potstill's."""
    mark = next((mark for mark in MARKS if (path / mark).is_file()), None)
    if mark is None and not path.is_file():
        return None
    file = path if mark is None else path / mark
    # A list is never a measurement. It may be the user's own data.
    record = (read_json if mark is None else read_object)(file, "The file", finite=False)
    kind = _kind(record, mark) if isinstance(record, dict) else None
    if kind is None:
        return None
    own = name or (path.resolve().name if path.is_dir() else path.stem)
    recipe = _recipe(path / RECIPE) if kind in (Kind.TRAINING, Kind.TASK) else {}
    return Found(kind, own, name is not None, path, file, record, recipe)


def _kind(record: Mapping[str, Any], mark: str | None) -> Kind | None:
    if mark in (PLAN, SUMMARY):
        return Kind.EVALUATION if mark == PLAN else Kind.EXPORT
    if mark == RESULTS:
        return Kind.TRAINING if "held_out" in record else Kind.TASK if "task" in record else None
    if {"machine", "limits", "rows"} <= record.keys():
        return Kind.INFERENCE
    return Kind.SPEED if {"speed", "flops_per_token", "hardware"} <= record.keys() else None


def _recipe(file: Path) -> dict[str, Any]:
    """Return the options in a recipe; none if it is missing or damaged, because the results are valid without it."""
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {str(name): value for name, value in recipe.items()} if isinstance(recipe, dict) else {}


def _with_own_names(found: Sequence[Found]) -> list[Found]:
    """Give results of the same kind and name the name of their parent's folder too. Tasks may share a model's name."""
    taken = [(one.kind, one.name) for one in found]
    return [
        Found(one.kind, f"{one.path.resolve().parent.name}/{one.name}", False, *_rest(one))
        if taken.count((one.kind, one.name)) > 1 and one.kind is not Kind.TASK and not one.named
        else one
        for one in found
    ]


def _rest(one: Found) -> tuple[Path, Path, Mapping[str, Any], Mapping[str, Any]]:
    return one.path, one.file, one.record, one.recipe
