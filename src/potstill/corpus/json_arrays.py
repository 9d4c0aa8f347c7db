"""Read a `.json` file that holds one array."""

import json
from pathlib import Path
from typing import Any

from potstill.corpus.lines import decoded_lines, open_hashed
from potstill.corpus.sources import compression_of
from potstill.errors import PotstillError
from potstill.json_files import loads


def json_array(path: str) -> list[Any] | None:
    """Return the array that a `.json` file holds; None if it begins with anything else, as a file of JSON lines does.

    Raises:
        PotstillError: the file cannot be read, or its array is not valid JSON.
    """
    name = Path(path)
    if (name.with_suffix("") if compression_of(path) else name).suffix.lower() != ".json":
        return None
    texts: list[str] = []
    with open_hashed(path) as file:
        for number, line in decoded_lines(path, file):
            if isinstance(line, UnicodeDecodeError):
                raise PotstillError(f"{path}, line {number}, is not UTF-8 text: convert the file.") from line
            if not any(texts) and line.strip() and not line.lstrip().startswith("["):
                return None
            texts.append(line if line.strip() else "")
    try:
        found = loads("\n".join(texts))
    except (ValueError, RecursionError) as error:
        if any(texts) and isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return None  # lines that are arrays: the reader of lines says so
        reason = f"{error.msg} in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise PotstillError(f"{path} is not valid JSON ({reason}): write one array of objects.") from error
    return found if isinstance(found, list) else None
