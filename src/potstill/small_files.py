"""Read files that are small by their nature, such as configs and recipes, whoever wrote them.

Such a file may be 10 GB long all the same, may be a pipe that nothing ever comes out of, or may ask for 2⁴⁰ labels. It
is then refused before it takes all memory or all day.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError

MOST_BYTES = 2**27
"""The largest size of a JSON file, 128 MiB. The largest known one is a tokenizer of 33 MiB."""

MOST_YAML_BYTES = 2**20
"""The largest size of a YAML file, which is read at about 100 kB a second."""

MOST_PARTS = 2**20
"""The largest number of layers, labels or the like in a config. transformers makes a list of each as it reads the
config, before anybody can compare the number with the weights."""

READ_WITH_MODELS = ("*config*.json", "*token*.json", "vocab*", "merges*", "*.model", "*.index.json", "*.jinja")
"""Files that transformers reads from the folder of a model, apart from the weights."""

_PARTS = re.compile(r"(layers?|labels|blocks?|groups|experts|stages|heads|depth)$")


class NotSmallError(PotstillError):
    """A file is too large to be what its name says, or is no file at all."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Make sure that a path leads to a file, and not to a pipe or a device, whose end may never come.

    Raises:
        NotSmallError: it leads to something else.
        OSError: there is nothing at the path.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder has a message of its own
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise NotSmallError(f"{os.fspath(path)} is {kind}, not a file: copy what it gives to a file.")


def read_small(path: str | os.PathLike[str], most: int = MOST_BYTES, pipes: bool = False) -> bytes:
    """Return the content of a file.

    Args:
        path: of the file.
        most: the largest size that it may have, in bytes.
        pipes: whether it may be a pipe, as `--config <(...)` names one in a shell.

    Raises:
        NotSmallError: the file is larger, or it is no file.
        OSError, ValueError: it cannot be read.
    """
    if not pipes:
        check_regular(path)
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(path, most)
    return content


def check_model_folder(folder: Path) -> None:
    """Check the small files in the folder of a model before transformers reads them.

    Raises:
        NotSmallError: one is too large, or is no file; it is named.
    """
    for path in _read_with_models(folder):
        check_regular(path)
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise _too_large(path, MOST_BYTES)


def check_parts(config: Any, config_is: str) -> None:
    """Check the numbers in a config that transformers counts up to while it reads the config.

    Args:
        config: as `config.json` has it.
        config_is: what it is called in the message: "the config.json of the teacher 'x'".

    Raises:
        PotstillError: one is above `MOST_PARTS`.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            check_parts(value, config_is)
            if type(value) is int and value > MOST_PARTS and _PARTS.search(key):
                raise PotstillError(
                    f"{config_is} has a {key} of more than {MOST_PARTS:,}, which no model has: restore it."
                )


def _read_with_models(folder: Path) -> Iterator[Path]:
    try:
        for pattern in READ_WITH_MODELS:
            yield from (path for path in sorted(folder.glob(pattern)) if path.exists())
    except OSError:  # a folder that cannot be listed; whoever reads a file in it says so
        return


def _too_large(path: str | os.PathLike[str], most: int) -> NotSmallError:
    return NotSmallError(
        f"{os.fspath(path)} is larger than {most // 2**20} MiB, so it is not what its name says: restore it, or remove "
        "it."
    )
