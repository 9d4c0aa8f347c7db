"""Markdown from what may be any text: names, paths and labels are shown as they are and do nothing.

Where Markdown is put together, text goes through `plain` or `code`, cells through `table`, and a card's header through
`front_matter`; only what potstill itself says may hold marks.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

NOTHING = "–"

_MARKS = re.compile(r"[\\`*<>\[\]|~$&#]|(?<![^\W_])_|_(?![^\W_])")
_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def visible(text: str) -> str:
    r"""Return a text on one line: line breaks, control characters and halves of characters as Python writes them.

    So are the marks that turn the direction of what follows. "a\nb" becomes "a\\nb".
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or ord(char) in _DIRECTIONS
        else char
        for char in text
    )


def plain(text: object) -> str:
    """Return Markdown that shows a text as it is, in a paragraph, a heading, an item of a list, or a table's cell."""
    escaped = _MARKS.sub(r"\\\g<0>", visible(str(text)))
    number = re.match(r"\d+(?=[.)](\s|$))", escaped)  # the number of an item
    if number:
        return f"{number[0]}\\{escaped[number.end() :]}"
    return f"\\{escaped}" if re.match(r"[-+=]+(\s|$)", escaped) else escaped


def code(text: object, cell: bool = False) -> str:
    """Return a text as code; where it stands in a table's cell, bars are escaped, for they would end the cell."""
    shown = visible(str(text))
    shown = shown.replace("|", r"\|") if cell else shown
    if not shown.strip():
        return f"`{shown or ' '}`"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], figures: bool = False) -> str:
    """Return a table.

    Args:
        header: Markdown of each column's title.
        rows: Markdown of the cells, as many as titles.
        figures: whether all columns but the first are set at the right.
    """
    rule = ["---", *("--:" if figures else "---" for _ in header[1:])]
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def figure(value: float, form: str) -> str:
    """Return a figure as `format` writes it; a dash for what is no finite number, of which `not_finite` tells."""
    return format(value, form) if math.isfinite(value) else NOTHING


def front_matter(header: Mapping[str, Any], base_model: str | Sequence[str] | None) -> str:
    """Return the header of a card in YAML, as the hub reads it.

    Args:
        header: its fields.
        base_model: what the model was made from, one or several. It becomes a field as far as it can be a name of the
            hub, and is not a folder of the machine that trained.
    """
    fields = dict(header)
    named = [base_model] if isinstance(base_model, str) else base_model or []
    of_the_hub = [name for name in named if _is_of_the_hub(name)]
    if of_the_hub:
        fields["base_model"] = of_the_hub[0] if len(of_the_hub) == 1 else of_the_hub
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def name_of(model: str) -> str:
    """Return what a model is called in a text: the last part of its path or of its name on the hub, as Markdown."""
    return plain(Path(model).name or model)


def _is_of_the_hub(model: str) -> bool:
    try:
        validate_repo_id(model)
        return not Path(model).exists()
    except (HFValidationError, OSError, ValueError):
        return False
