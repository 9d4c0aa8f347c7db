"""The options of all verbs as a table that ships with the package, so that help and usage errors appear at once.

The signatures of the verbs are the source. Reading them takes seconds, because it imports torch and transformers. So
`make options` writes the table beforehand, and a test compares the two. A table is ignored if it was made with another
version of transformers, or if one of its source files has changed since.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from potstill.command_line import Option, Verb

ROOT = Path(__file__).parent
TABLE = ROOT / "option_table.json"
DEFAULTS = {f.name: f.default for f in fields(Option)}


def verb_of(name: str, where: str) -> Verb:
    """Return the description of a verb from the table, or from its signature if the table cannot be used.

    Args:
        name: the name of the verb.
        where: its module and its function, with a colon in between.
    """
    return _from_table(name) or _from_signature(where)


def function_of(where: str) -> Any:
    """Import the function of a verb."""
    module, _, function = where.partition(":")
    return getattr(importlib.import_module(module), function)


def table_of(verbs: dict[str, str]) -> dict[str, Any]:
    """Return the table: the source files and the options of each verb. Options that verbs share are written once.

    Args:
        verbs: name → module and function, with a colon in between.
    """
    from potstill.signatures import describe, sources

    shared: dict[str, dict[str, Any]] = {}
    found = {}
    for name, where in verbs.items():
        function = function_of(where)
        verb = describe(function)
        entries = []
        for option in verb.options:
            entry = {key: value for key, value in asdict(option).items() if value != DEFAULTS[key]}
            first = shared.setdefault(option.name, entry) if option.inherited else None
            entries.append(option.name if first == entry else entry)
        files = {path.relative_to(ROOT).as_posix(): _digest(path) for path in sources(function)}
        found[name] = {"summary": verb.summary, "files": files, "options": entries}
    return {"transformers": version("transformers"), "shared": shared, "verbs": found}


def as_text(table: dict[str, Any]) -> str:
    """Return the table as the text of its file."""
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _from_signature(where: str) -> Verb:
    from potstill.signatures import describe

    return describe(function_of(where))


def _from_table(name: str) -> Verb | None:
    try:
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        entry = table["verbs"][name]
        if table["transformers"] != version("transformers"):
            return None
        if any(_digest(ROOT / file) != digest for file, digest in entry["files"].items()):
            return None
    except (OSError, ValueError, KeyError, PackageNotFoundError):
        return None
    options = [table["shared"][option] if isinstance(option, str) else option for option in entry["options"]]
    return Verb(entry["summary"], tuple(Option(**one | {"choices": tuple(one.get("choices", ()))}) for one in options))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    from potstill.cli import VERBS

    TABLE.write_text(as_text(table_of({name: where for name, (where, _) in VERBS.items()})), encoding="utf-8")
