"""The verbs, what they leave if nothing interrupts them, and the process that forks them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fork_server import ForkServer
from verbs import Work


@dataclass
class Workplace:
    """The verbs, what they leave if nothing interrupts them, and how long that takes.

    Attributes:
        place: a folder for everything.
        server: forks the commands.
        works: the verbs by name.
        log: what all commands print.
        seconds: verb → time of an uninterrupted run.
        changes: verb → number of its changes of the file system.
    """

    place: Path
    server: ForkServer
    works: dict[str, Work]
    seconds: dict[str, float] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.place / "log"

    def whole(self, verb: str) -> Path:
        """Return the folder of an uninterrupted run of a verb, which is run at the first call."""
        folder = self.place / "whole" / verb
        if verb not in self.seconds:
            folder.parent.mkdir(exist_ok=True)  # as for the runs that are killed: the verb does not have to make it
            for needed, name in (("blocks", "prepare"), ("task-model", "task model")):
                if not (self.place / needed).exists():
                    assert self.run(name, self.place / needed) == 0, self.tail()
            count = self.place / "count"
            child = self.server.start(self.works[verb].argv(folder), self.log, self.cache(folder), count_to=count)
            assert child.wait() == 0, self.tail()
            self.seconds[verb] = child.seconds
            self.changes[verb] = int(count.read_text())
        return folder

    def run(self, verb: str, folder: Path) -> int:
        """Run a verb to its end, and return its status."""
        return self.server.start(self.works[verb].argv(folder), self.log, self.cache(folder)).wait()

    def cache(self, folder: Path) -> dict[str, str]:
        """Return the variable that names a cache of its own for an output folder."""
        return {"POTSTILL_CACHE": str(folder.with_name(f"{folder.name}-cache"))}

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
