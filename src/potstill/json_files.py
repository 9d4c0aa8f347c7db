"""Read JSON that may be damaged or written by anybody, and write JSON that can be read again.

Every failure becomes a `PotstillError` of one sentence, whatever the parser raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError, first_line
from potstill.small_files import read_small

MOST_VALUES = 2**24
"""The largest number of values in a JSON text. Each takes up to 250 bytes of memory, and may be 3 bytes of text."""


def read_json(path: str | Path, what: str, advice: str = "", finite: bool = True) -> Any:
    """Return the value in a JSON file.

    Args:
        path: path of the file, which is in UTF-8.
        what: the kind of file, as the beginning of a sentence: "The manifest".
        advice: what to do about a damaged file, as the end of a sentence: "prepare the corpus again". A file that
            cannot be opened is not damaged, so its message has no advice.
        finite: whether NaN and Infinity count as damage, because JSON does not have them. Other libraries do write
            them: use False for a model's config or a trainer's state.

    Raises:
        PotstillError: the file cannot be opened or is too large, or its content is not exactly one JSON value.
    """
    try:
        content = read_small(path)
    except OSError as error:
        raise PotstillError(f"{what} {path} cannot be read: {error.strerror or first_line(error)}.") from error
    except ValueError as error:  # a path with a NUL in it
        raise PotstillError(f"{what} {str(path)!r} cannot be read: {first_line(error)}.") from error
    return parse_json(content, f"{what} {path}", advice, finite)


def read_object(path: str | Path, what: str, advice: str = "", finite: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file; see `read_json` for the arguments.

    Raises:
        PotstillError: the file cannot be opened, or its content is not exactly one JSON object.
    """
    value = read_json(path, what, advice, finite)
    if not isinstance(value, dict):
        raise _damaged(f"{what} {path}", "it holds no JSON object", advice)
    return value


def parse_json(content: str | bytes, what: str, advice: str = "", finite: bool = True) -> Any:
    """Return the value of a JSON text; bytes are UTF-8, with or without a byte-order mark.

    Args:
        content: the whole text.
        what: the kind of text and its place, as the beginning of a sentence: "rows.jsonl, line 3,".
        advice: see `read_json`.
        finite: see `read_json`.

    Raises:
        PotstillError: the text is not exactly one JSON value.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        if "\0" in text:  # a power failure during writing can leave such a file
            raise _damaged(what, "it holds NUL bytes", advice)
        if not text.strip():
            raise _damaged(what, "it is empty", advice)
        value = loads(text, parse_float=_finite, parse_constant=_refused) if finite else loads(text)
        if "\\u" in text:  # half of a surrogate pair is no character: it could not be printed or written
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _damaged(what, f"byte {error.start} is not UTF-8 text", advice) from error
    except UnicodeEncodeError as error:
        raise _damaged(what, "it holds half of a surrogate pair, which is no character", advice) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _damaged(what, f"it is not JSON ({error.msg.rstrip('.: ')} at {where})", advice) from error
    except RecursionError as error:
        raise _damaged(what, "its values are nested too deeply", advice) from error
    except (ValueError, MemoryError) as error:  # for example a whole number of thousands of digits
        reason = first_line(error).partition(";")[0]  # Python's advice after the semicolon is for programmers
        raise _damaged(what, f"it is not JSON ({reason})", advice) from error
    return value


def loads(text: str, **options: Any) -> Any:
    """Return the value of a JSON text, as `json.loads` does, unless it would take much more memory than its text does.

    Raises:
        ValueError: the text is not JSON, or has more than `MOST_VALUES` values.
        RecursionError: its values are nested too deeply.
    """
    if len(text) > MOST_VALUES and sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    return json.loads(text, **options)


def json_text(value: Any, what: str) -> str:
    """Return a value as JSON that `read_json` can read.

    Args:
        value: a value made of dictionaries, lists, texts, numbers, booleans and None.
        what: the kind of file and its path, as the beginning of a sentence: "The plan plan.json".

    Raises:
        PotstillError: the value holds something else, a number that is not finite, or text that is not UTF-8.
    """
    check_finite(value, f"{what} cannot be written")
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as error:  # names of files are bytes and may be no UTF-8
        line = f"{text[: error.start].splitlines()[-1]}{text[error.start :].splitlines()[0]}".strip()
        raise PotstillError(f"{what} cannot be written: {line!a} in it is not UTF-8 text.") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise PotstillError(f"{what} cannot be written: {first_line(error)}.") from error
    return text


def check_finite(measured: Any, wrong: str) -> None:
    """Make sure that all figures are finite numbers.

    Args:
        measured: the figures, in dictionaries and lists.
        wrong: the beginning of the message: "The measurement is no result".

    Raises:
        PotstillError: some figures are not finite; the message names them.
    """
    names = not_finite(measured)
    if names:
        raise PotstillError(f"{wrong}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not finite (NaN).")


def not_finite(measured: Any, name: str = "") -> list[str]:
    """Return the names of the figures that are not finite, such as "final loss". Items of a list are numbered.

    Args:
        measured: the figures, in dictionaries and lists.
        name: the name of `measured`, which begins each name in the result.
    """
    if isinstance(measured, float):
        return [] if math.isfinite(measured) else [name or "it"]
    items: Iterable[tuple[Any, Any]] = measured.items() if isinstance(measured, Mapping) else ()
    items = enumerate(measured) if isinstance(measured, (list, tuple)) else items
    return [found for key, value in items for found in not_finite(value, f"{name} {key}".strip())]


def _damaged(what: str, why: str, advice: str) -> PotstillError:
    return PotstillError(f"{what} is damaged: {why}{'; ' + advice if advice else ''}.")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):  # 1e999
        raise ValueError(f"{digits} is beyond the range of numbers")
    return value


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
