"""Common parts of the scripts: options, error handling, folders, and the JSON files with the results."""

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
    """The folders and GPUs of a script.

    Attributes:
        work: folder of runs and weights, which are large.
        results: folder of the JSON files, which are small.
        gpus: number of GPUs to use; 0 for the CPU.
        runs_per_gpu: runs of small models that share a GPU.
        more: options that the script does not know and passes to potstill's verb.
    """

    work: Path
    results: Path
    gpus: int
    more: tuple[str, ...] = ()
    runs_per_gpu: int = 1

    @property
    def teacher(self) -> Path:
        """Folder of the teacher that `reproduce.teacher` makes."""
        return self.work / "teacher"

    def blocks(self, size: int) -> Path:
        """Folder of the corpus that `reproduce.teacher` prepares in blocks of `size` tokens."""
        return self.work / f"blocks-{size}"


def new_parser(
    description: str | None, minutes: float | None = None, runs_per_gpu: int | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have.

    Args:
        description: docstring of the script.
        minutes: default of `--minutes`; None for a script without this option.
        runs_per_gpu: default of `--runs_per_gpu`; None for a script without this option.
    """
    parser = argparse.ArgumentParser(
        description=(description or "").split("\n")[0],
        epilog="Other options are passed to potstill's verb. Repeat a command to continue: finished runs are skipped.",
        allow_abbrev=False,
    )
    parser.add_argument("--work_dir", type=Path, default=HERE / "scratch", help="folder of runs and weights")
    parser.add_argument("--results_dir", type=Path, default=HERE / "results", help="folder of the JSON files")
    parser.add_argument("--gpus", type=int, help="number of GPUs to use; 0 for the CPU; default: all visible GPUs")
    if minutes is not None:
        parser.add_argument("--minutes", type=float, default=minutes, help=f"GPU-minutes of a training ({minutes:g})")
    if runs_per_gpu is not None:
        text = f"runs of small models that share a GPU ({runs_per_gpu})"
        parser.add_argument("--runs_per_gpu", type=int, default=runs_per_gpu, help=text)
    return parser


def place_of(options: argparse.Namespace, more: Sequence[str] = ()) -> Place:
    """Return the folders and GPUs that the options of `new_parser` name.

    Raises:
        PotstillError: there are fewer GPUs than requested, `--minutes` is not above 0, or a folder cannot be written
            to.
    """
    visible = torch.cuda.device_count()
    gpus = visible if options.gpus is None else options.gpus
    if not 0 <= gpus <= visible:
        raise PotstillError(f"--gpus is {gpus}, but {visible} GPUs are visible.")
    minutes = getattr(options, "minutes", None)
    if minutes is not None and minutes <= 0:
        raise PotstillError(f"--minutes is {minutes:g}: it must be above 0.")
    runs_per_gpu = getattr(options, "runs_per_gpu", 1)
    if runs_per_gpu < 1:
        raise PotstillError(f"--runs_per_gpu is {runs_per_gpu}: give 1 or more.")
    for folder in (options.work_dir, options.results_dir):
        check_writable(folder)
    return Place(options.work_dir, options.results_dir, gpus, tuple(more), runs_per_gpu)


def run(script: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a script, and return the exit status. A `PotstillError` is printed as one sentence."""
    try:
        script(sys.argv[1:] if argv is None else argv)
    except PotstillError as error:
        print(f"reproduce: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        print("reproduce: interrupted; repeat the same command to continue.", file=sys.stderr, flush=True)
        return 130
    return 0


def named_values(arguments: Sequence[str], option: str) -> dict[str, str]:
    """Return the values of arguments of the form NAME=VALUE, by name.

    Raises:
        PotstillError: an argument has another form.
    """
    for argument in arguments:
        if not all(argument.partition("=")):
            raise PotstillError(f"{option} {argument!r} is not NAME=VALUE.")
    return dict(argument.split("=", 1) for argument in arguments)


def existing(folder: Path, made_by: str) -> Path:
    """Return a folder that an earlier script wrote.

    Raises:
        PotstillError: it does not exist.
    """
    if not folder.is_dir():
        raise PotstillError(
            f"There is no folder {folder}: run `python -m reproduce.{made_by}` first, or name another folder."
        )
    return folder


def write_result(place: Place, name: str, figures: dict[str, Any]) -> Path:
    """Write the results of a script with the conditions of their measurement, and return the file."""
    path = place.results / f"{name}.json"
    record = {"format_version": FORMAT, "conditions": conditions(place, name)} | figures
    write_text(path, json_text(record, str(path)) + "\n")
    print(f"wrote {path}", flush=True)
    return path


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the results of a script, or None if it has not been run.

    Raises:
        PotstillError: the file is damaged, or has the format of a later version.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    record = read_object(path, "The file", "delete it and run its script again")
    if record.get("format_version") != FORMAT:
        raise PotstillError(f"{path} does not have format {FORMAT}: delete it and run reproduce.{_module(name)} again.")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run. Logged values may be NaN.

    Raises:
        PotstillError: it cannot be read.
    """
    return read_object(path, "The file", "delete it and run its script again", finite=False)


def conditions(place: Place, name: str) -> dict[str, Any]:
    """Return the conditions of a measurement: its command, date, commit, hardware and versions."""
    return {
        "command": " ".join([f"python -m reproduce.{_module(name)}", *map(shortened, sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": gpu_name() if place.gpus else hardware(torch.device("cpu")),
        "gpus": place.gpus,
        "versions": versions("potstill", "torch", "transformers"),
    }


def _module(name: str) -> str:
    """Return the module of a script in this folder or in `papers`."""
    return f"papers.{name}" if (HERE / "papers" / f"{name}.py").is_file() else name


def gpu_name() -> str:
    """Return the name of the first GPU from nvidia-smi. CUDA would take memory that the runs may need."""
    names = nvidia_smi("name")
    return names[0] if names else "GPU"


def shortened(argument: str) -> str:
    """Return a command-line argument without the parent folders on this machine. They do not help a reader."""
    option, equals, value = argument.partition("=")
    if equals and os.path.isabs(value):
        return f"{option}={Path(value).name}"
    return Path(argument).name if os.path.isabs(argument) else argument


def _commit() -> str | None:
    """Return the commit of the checkout, with a plus if tracked files differ from it; None outside of git."""
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
