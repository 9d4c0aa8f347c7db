"""JSON that may be damaged or written by anybody is read, and JSON that can be read again is written.

Every failure is one sentence, whatever the parser raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError, first_line


def read_json(path: str | Path, what: str, advice: str = "", finite: bool = True) -> Any:
    """Return the value in a JSON file.

    Args:
        path: of the file, in UTF-8.
        what: the file is, as a sentence begins: "The manifest".
        advice: what to do about a damaged file, as a sentence ends: "prepare the corpus again". A file that cannot be
            opened is not damaged, so its message does without.
        finite: whether NaN and Infinity, which JSON does not have, are damage. Other libraries do write them: false
            for a model's config or a trainer's state.

    Raises:
        PotstillError: the file cannot be opened, or holds anything but one JSON value.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PotstillError(f"{what} {path} cannot be read: {error.strerror or first_line(error)}.") from error
    except ValueError as error:  # a path with a NUL in it
        raise PotstillError(f"{what} {str(path)!r} cannot be read: {first_line(error)}.") from error
    return parse_json(content, f"{what} {path}", advice, finite)


def read_object(path: str | Path, what: str, advice: str = "", finite: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file, by the arguments of `read_json`.

    Raises:
        PotstillError: the file cannot be opened, or holds anything but one JSON object.
    """
    value = read_json(path, what, advice, finite)
    if not isinstance(value, dict):
        raise _damaged(f"{what} {path}", "it holds no JSON object", advice)
    return value


def parse_json(content: str | bytes, what: str, advice: str = "", finite: bool = True) -> Any:
    """Return the value of a JSON text; bytes are UTF-8, with or without a byte-order mark.

    Args:
        content: all of the text.
        what: the text is and where it stands, as a sentence begins: "rows.jsonl, line 3,".
        advice: as in `read_json`.
        finite: as in `read_json`.

    Raises:
        PotstillError: it is anything but one JSON value.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        if "\0" in text:  # which a disk leaves of a file that was being written when the power went
            raise _damaged(what, "it holds NUL bytes", advice)
        if not text.strip():
            raise _damaged(what, "it is empty", advice)
        value = json.loads(text, parse_float=_finite, parse_constant=_refused) if finite else json.loads(text)
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
    except (ValueError, MemoryError) as error:  # among them a whole number of thousands of digits
        reason = first_line(error).partition(";")[0]  # after it comes what a programmer might do
        raise _damaged(what, f"it is not JSON ({reason})", advice) from error
    return value


def json_text(value: Any, what: str) -> str:
    """Return a value as JSON that `read_json` reads.

    Args:
        value: of dictionaries, lists, texts, numbers, booleans and None.
        what: it is and where it is to be, as a sentence begins: "The plan plan.json".

    Raises:
        PotstillError: it holds something else, a number that is not finite, or text that is not UTF-8.
    """
    check_finite(value, f"{what} cannot be written")
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as error:  # of the name of a file: such names are bytes
        line = f"{text[: error.start].splitlines()[-1]}{text[error.start :].splitlines()[0]}".strip()
        raise PotstillError(f"{what} cannot be written: {line!a} in it is not UTF-8 text.") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise PotstillError(f"{what} cannot be written: {first_line(error)}.") from error
    return text


def check_finite(measured: Any, wrong: str) -> None:
    """Make sure that figures are finite numbers.

    Args:
        measured: of dictionaries and lists.
        wrong: beginning of the message: "The measurement is no result".

    Raises:
        PotstillError: some are not; they are named.
    """
    names = not_finite(measured)
    if names:
        raise PotstillError(f"{wrong}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not finite (NaN).")


def not_finite(measured: Any, name: str = "") -> list[str]:
    """Return the names of the figures that are no finite numbers, such as "final loss"; those of a list are numbered.

    Args:
        measured: of dictionaries and lists.
        name: of the whole.
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
