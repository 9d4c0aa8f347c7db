"""Dataclasses as JSON files: written atomically with a format version, and checked field by field when read."""

from __future__ import annotations

import reprlib
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from potstill.errors import PotstillError
from potstill.files import write_text
from potstill.json_files import json_text, read_object

VERSION = "format_version"


def write_record(path: Path, record: Any, version: int) -> None:
    """Write a dataclass as a JSON object, its version first.

    Raises:
        PotstillError: a field has a wrong type or is not a finite number, or the file cannot be written.
    """
    values = asdict(record)
    check_record(values, type(record), f"{path} cannot be written")
    write_text(path, json_text({VERSION: version} | values, str(path)) + "\n")


def read_record(path: Path, kind: type, version: int, what: str) -> dict[str, Any]:
    """Return the fields of a dataclass that `write_record` wrote, in this version of its format or an earlier one.

    Args:
        path: path of the file.
        kind: the dataclass.
        version: the latest version that this program knows.
        what: the kind of file: "the result of a run".

    Raises:
        PotstillError: the file cannot be read, is damaged, has a later version, or is of another kind.
    """
    record = read_object(path, f"{what[0].upper()}{what[1:]}", "delete it and run it again")
    return checked_fields(record, path, kind, version, what)


def checked_fields(record: dict[str, Any], path: Path, kind: type, version: int, what: str) -> dict[str, Any]:
    """Check an object that was read from a file, and return its fields: see `read_record`."""
    found = record.get(VERSION)
    if not isinstance(found, int) or isinstance(found, bool):
        raise PotstillError(f"{path} is not {what}: it has no {VERSION}; delete it or move it elsewhere.")
    if found > version:
        raise PotstillError(
            f"{path} was written in format {found} and this version of potstill knows formats up to {version}: "
            "upgrade potstill."
        )
    values = {name: value for name, value in record.items() if name != VERSION}
    check_record(values, kind, f"{path} is not {what}")
    return values


def check_record(record: Mapping[str, Any], kind: type, wrong: str) -> None:
    """Make sure that an object has the fields of a dataclass, with values of their types.

    A field whose default is None may be missing, because earlier versions of the format do not have it.

    Raises:
        PotstillError: the object has other fields or other types; `wrong` begins the message.
    """
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.name not in record:
            if field.default is None:
                continue
            raise PotstillError(f"{wrong}: it has no {field.name!r}.")
        if not _fits(record[field.name], hints[field.name]):
            raise PotstillError(f"{wrong}: {field.name!r} is {reprlib.repr(record[field.name])}.")
    names = {field.name for field in fields(kind)}
    unknown = [name for name in record if name not in names]
    if unknown:
        raise PotstillError(f"{wrong}: it has the unknown field {unknown[0]!r}.")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has a type. A tuple is a list in JSON."""
    arguments = get_args(hint)
    if hint is Any:
        return True
    if get_origin(hint) in (types.UnionType, Union):
        return any(_fits(value, choice) for choice in arguments)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if get_origin(hint) in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        # JSON may hold a whole number that is too large for a float.
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))
