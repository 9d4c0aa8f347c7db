"""What the scripts share: their options, how one ends, where things lie, and the JSON files with the figures."""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.errors import PotstillError
from potstill.files import check_writable, write_text
from potstill.json_files import json_text, read_object
from potstill.training.hardware import hardware
from potstill.versions import versions
from reproduce.power import nvidia_smi

HERE = Path(__file__).resolve().parent
FORMAT = 1


@dataclass(frozen=True)
class Place:
    """Where a script works.

    Attributes:
        work: folder of runs and weights, which are large.
        results: folder of the JSON files, which are small.
        gpus: how many to use; 0 for the CPU.
        more: options for potstill's verb that the script does not know itself.
    """

    work: Path
    results: Path
    gpus: int
    more: tuple[str, ...] = ()

    @property
    def teacher(self) -> Path:
        """The teacher that `reproduce.teacher` makes."""
        return self.work / "teacher"

    def blocks(self, size: int) -> Path:
        """The corpus in blocks of so many tokens that `reproduce.teacher` prepares."""
        return self.work / f"blocks-{size}"


def parser(description: str | None, minutes: float | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have.

    Args:
        description: docstring of the script.
        minutes: default of `--minutes`; None for a script without.
    """
    made = argparse.ArgumentParser(
        description=(description or "").split("\n")[0],
        epilog="Any other option is given to potstill's verb. Repeat a command to go on: what is finished is skipped.",
        allow_abbrev=False,
    )
    made.add_argument("--work_dir", type=Path, default=HERE / "scratch", help="folder of runs and weights")
    made.add_argument("--results_dir", type=Path, default=HERE / "results", help="folder of the JSON files")
    made.add_argument("--gpus", type=int, help="GPUs to use; 0 for the CPU, all that are visible if not given")
    if minutes is not None:
        made.add_argument("--minutes", type=float, default=minutes, help=f"GPU-minutes of a training ({minutes:g})")
    return made


def place_of(options: argparse.Namespace, more: Sequence[str] = ()) -> Place:
    """Return where to work, as the options of `parser` say.

    Raises:
        PotstillError: there are fewer GPUs than asked for, a training was given no time, or a folder cannot be
            written to.
    """
    visible = torch.cuda.device_count()
    gpus = visible if options.gpus is None else options.gpus
    if not 0 <= gpus <= visible:
        raise PotstillError(f"--gpus is {gpus}, but {visible} are visible.")
    minutes = getattr(options, "minutes", None)
    if minutes is not None and minutes <= 0:
        raise PotstillError(f"--minutes is {minutes:g}: it must be above 0.")
    for folder in (options.work_dir, options.results_dir):
        check_writable(folder)
    return Place(options.work_dir, options.results_dir, gpus, tuple(more))


def run(script: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a script, and return the exit status: what is wrong is told in a sentence."""
    try:
        script(sys.argv[1:] if argv is None else argv)
    except PotstillError as error:
        print(f"reproduce: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        print("reproduce: interrupted; give the same command again to go on.", file=sys.stderr, flush=True)
        return 130
    return 0


def named_values(words: Sequence[str], option: str) -> dict[str, str]:
    """Return words written as NAME=VALUE by name.

    Raises:
        PotstillError: one is written otherwise.
    """
    for word in words:
        if not all(word.partition("=")):
            raise PotstillError(f"{option} {word!r} is not NAME=VALUE.")
    return dict(word.split("=", 1) for word in words)


def existing(folder: Path, made_by: str) -> Path:
    """Return a folder that an earlier script left.

    Raises:
        PotstillError: it is not there.
    """
    if not folder.is_dir():
        raise PotstillError(
            f"There is no folder {folder}: run `python -m reproduce.{made_by}` before, or name another."
        )
    return folder


def write_result(place: Place, name: str, figures: dict[str, Any]) -> Path:
    """Write the figures of a script with the conditions under which they were measured, and return the file."""
    path = place.results / f"{name}.json"
    record = {"format_version": FORMAT, "conditions": conditions(place, name)} | figures
    write_text(path, json_text(record, str(path)) + "\n")
    print(f"wrote {path}", flush=True)
    return path


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the figures of a script, None where it has not been run.

    Raises:
        PotstillError: the file is damaged, or of a later version.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    record = read_object(path, "The file", "delete it and run its script again")
    if record.get("format_version") != FORMAT:
        raise PotstillError(f"{path} is in another format than {FORMAT}: delete it and run reproduce.{name} again.")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that a run left; what a trainer logged may be NaN.

    Raises:
        PotstillError: it cannot be read.
    """
    return read_object(path, "The file", "delete it and run its script again", finite=False)


def conditions(place: Place, name: str) -> dict[str, Any]:
    """Return on what, with what, when and by which command something is measured now."""
    return {
        "command": " ".join([f"python -m reproduce.{name}", *map(shortened, sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": gpu_name() if place.gpus else hardware(torch.device("cpu")),
        "gpus": place.gpus,
        "versions": versions("potstill", "torch", "transformers"),
    }


def gpu_name() -> str:
    """Return what the first GPU is called, by nvidia-smi: to ask CUDA would take memory that the runs may need."""
    names = nvidia_smi("name")
    return names[0] if names else "GPU"


def shortened(word: str) -> str:
    """Return a word of a command line without the folders of this machine, which are nothing to a reader."""
    option, equals, value = word.partition("=")
    if equals and os.path.isabs(value):
        return f"{option}={Path(value).name}"
    return Path(word).name if os.path.isabs(word) else word


def _commit() -> str | None:
    """Return the commit of the checkout, with a plus where tracked files differ from it; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None
