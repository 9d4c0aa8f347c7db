"""Write any text as Markdown: names, paths and labels are shown unchanged and have no effect on the markup.

Code that writes Markdown passes text through `plain` or `code`, cells through `table`, and the header of a card through
`front_matter`. Only potstill's own texts may hold markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from potstill.errors import visible

NOTHING = "–"

_MARKS = re.compile(r"[\\`*<>\[\]|~$&#]|(?<![^\W_])_|_(?![^\W_])")


def plain(text: object) -> str:
    """Return Markdown that shows a text unchanged in a paragraph, a heading, a list item or a table cell."""
    escaped = _MARKS.sub(r"\\\g<0>", visible(str(text)))
    number = re.match(r"\d+(?=[.)](\s|$))", escaped)  # the number of an item
    if number:
        return f"{number[0]}\\{escaped[number.end() :]}"
    return f"\\{escaped}" if re.match(r"[-+=]+(\s|$)", escaped) else escaped


def code(text: object, cell: bool = False) -> str:
    """Return a text as code. In a cell of a table bars are escaped, because they would end the cell."""
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
        rows: Markdown of the cells; each row has as many as the header.
        figures: whether all columns but the first are right-aligned.
    """
    rule = ["---", *("--:" if figures else "---" for _ in header[1:])]
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def figure(value: float, form: str) -> str:
    """Return a figure as `format` writes it, or a dash if it is not finite (see `not_finite`)."""
    return format(value, form) if math.isfinite(value) else NOTHING


def front_matter(header: Mapping[str, Any], base_model: str | Sequence[str] | None) -> str:
    """Return the header of a card in YAML, in the hub's format.

    Args:
        header: fields of the header.
        base_model: the model or models that this one was made from. Those that can be names on the hub and are not
            local folders become a field.
    """
    fields = dict(header)
    named = [base_model] if isinstance(base_model, str) else base_model or []
    of_the_hub = [name for name in named if _is_of_the_hub(name)]
    if of_the_hub:
        fields["base_model"] = of_the_hub[0] if len(of_the_hub) == 1 else of_the_hub
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def name_of(model: str) -> str:
    """Return a model's name for a text, as Markdown: the last part of its path or of its name on the hub."""
    return plain(Path(model).name or model)


def names_of(models: str | Sequence[str]) -> str:
    """Return `name_of` of a model, or of several with commas and "and" between."""
    if isinstance(models, str):
        return name_of(models)
    *others, last = map(name_of, models)
    return f"{', '.join(others)} and {last}" if others else last


def _is_of_the_hub(model: str) -> bool:
    try:
        validate_repo_id(model)
        return not Path(model).exists()
    except (HFValidationError, OSError, ValueError):
        return False
