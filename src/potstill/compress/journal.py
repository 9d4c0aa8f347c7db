"""The finished steps of a pruning, so that the same command continues after an interruption."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.files import write_text
from potstill.json_files import read_object

VERSION = 1


class Journal:
    """A hidden file beside the output folder. It is removed when the output is written.

    Args:
        folder: the output folder.
        run: what decides the steps: options and fingerprints. A journal of another run is not used.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        folder = folder.absolute()
        self.path = folder.parent / f".{folder.name}.steps.json"
        text = json.dumps(run, sort_keys=True, default=str)
        self._run = hashlib.sha256(text.encode()).hexdigest()

    def read(self) -> list[dict[str, Any]]:
        """Return the steps of this run that are finished; none if there is no journal of it."""
        if not self.path.is_file():
            return []
        try:
            found = read_object(self.path, "The journal")
        except PotstillError:  # the steps are then done again
            return []
        known = found.get("version") == VERSION and found.get("run") == self._run
        return found["steps"] if known and isinstance(found.get("steps"), list) else []

    def write(self, steps: list[dict[str, Any]]) -> None:
        """Write the steps that are finished."""
        write_text(self.path, json.dumps({"version": VERSION, "run": self._run, "steps": steps}) + "\n")

    def remove(self) -> None:
        """Remove the journal, if there is one."""
        with suppress(OSError):
            self.path.unlink()
