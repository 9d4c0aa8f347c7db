"""Running potstill's verbs: skipped where finished, resumed where interrupted, time and energy of each noted."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

from potstill.errors import PotstillError
from potstill.files import write_text
from potstill.training.checkpoints import last_checkpoint
from reproduce.common import Place, read_json
from reproduce.power import PowerMeter, visible_gpus
from reproduce.processes import passing_signals, run_words

RESUMABLE = ("distill", "pretrain")
"""Verbs that resume by an option; the others go on by themselves, or write all or nothing."""


@dataclass(frozen=True)
class Job:
    """A run of a verb.

    Attributes:
        name: its folder in the work folder.
        verb: of potstill's command line.
        options: name → value; a list is given as several words, None not at all.
        minutes: GPU-minutes of training; None where something else ends it.
        distributed: whether several GPUs share it as processes of one training; other verbs divide them themselves.
        more: options as words, after the others.
    """

    name: str
    verb: str
    options: dict[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    distributed: bool = True
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A run that is finished.

    Attributes:
        folder: what it wrote.
        gpus: that it ran on; 0 for the CPU.
        seconds: by the clock, from start to end of its processes, all sessions together.
        joules: that its GPUs took by their own sensors; None where that was not measured throughout.
    """

    folder: Path
    gpus: int
    seconds: float
    joules: float | None

    @property
    def cost(self) -> dict[str, Any]:
        """What is written down of it with the figures."""
        return {"gpus": self.gpus, "seconds_by_the_clock": self.seconds, "joules": self.joules}


def run_job(job: Job, place: Place, gpus: list[str] | None = None, prefix: str = "") -> Done:
    """Run a verb to its end, or take note that it was.

    Args:
        job: what to run.
        place: where.
        gpus: which to use, as `CUDA_VISIBLE_DEVICES` numbers them; the first `place.gpus` if None.
        prefix: of every line that it prints.

    Raises:
        PotstillError: another run has this name already, or the verb failed; its exit status is the error's.
    """
    gpus = visible_gpus(place.gpus) if gpus is None else gpus
    folder, noted = place.work / job.name, place.work / f"{job.name}.run.json"
    made_by = {
        "verb": job.verb,
        "options": {name: _plain(value) for name, value in job.options.items() if value is not None},
        "minutes": job.minutes,
        "more": list(job.more),
    }
    note: dict[str, Any] = {"sessions": []}
    if noted.is_file():
        note = read_json(noted)
        same = _is_same(note, made_by, noted, folder, len(gpus))
        if same and note["finished"] and folder.is_dir():
            print(f"{prefix}{job.name}: done before", flush=True)
            return _done(folder, note)
    note |= {"made_by": made_by, "gpus": len(gpus), "finished": False}
    write_text(noted, json.dumps(note, indent=1) + "\n")
    words = [*_launcher(job, len(gpus)), *_words(job, folder, len(gpus))]
    print(f"{prefix}{job.name}: {' '.join(words[1:])}", flush=True)
    started = time.monotonic()
    with PowerMeter(gpus) as meter:
        status = run_words(words, _environment(gpus), prefix)
    note["sessions"].append({"seconds": round(time.monotonic() - started, 1), "joules": meter.joules})
    note["finished"] = status == 0
    write_text(noted, json.dumps(note, indent=1) + "\n")
    if status:
        raise _ended(f"{job.name} (potstill {job.verb})", status)
    return _done(folder, note)


def run_jobs(jobs: Sequence[Job], place: Place) -> list[Done]:
    """Run verbs side by side, each on one GPU, or one after another on the CPU.

    Raises:
        PotstillError: one failed; those that were running then are finished, no other is begun.
    """
    if place.gpus <= 1:
        return [run_job(job, place) for job in jobs]
    free: Queue[str] = Queue()
    for gpu in visible_gpus(place.gpus):
        free.put(gpu)
    failed = threading.Event()

    def on_one(job: Job) -> Done | None:
        if failed.is_set():
            return None
        gpu = free.get()
        try:
            return run_job(job, place, [gpu], f"{job.name} | ")
        except BaseException:
            failed.set()
            raise
        finally:
            free.put(gpu)

    with passing_signals(), ThreadPoolExecutor(place.gpus) as pool:
        futures: list[Future[Done | None]] = [pool.submit(on_one, job) for job in jobs]
    for future in futures:
        if (error := future.exception()) is not None:
            raise error
    return [done for future in futures if (done := future.result()) is not None]


def _is_same(note: dict[str, Any], made_by: dict[str, Any], noted: Path, folder: Path, gpus: int) -> bool:
    """Return whether a run that is noted is the one to be run; one that left nothing may give way to another.

    Raises:
        PotstillError: it is another, or one that was begun on another number of GPUs.
    """
    before = note["made_by"]
    old, new = (
        made["options"] | {name: made[name] for name in made if name != "options"} for made in (before, made_by)
    )
    differing = [
        f"{name} was {old.get(name)} and is {new.get(name)}" for name in old | new if old.get(name) != new.get(name)
    ]
    begun = note["finished"] or last_checkpoint(folder) is not None
    if made_by["verb"] == before["verb"] == "evaluate":  # which compares what is there with what is wanted by itself
        return not differing
    mend = f"name another --work_dir, or delete {noted} and its folder to run it anew"
    if differing and begun:
        raise PotstillError(f"{noted} is of another run ({'; '.join(differing)}): {mend}.")
    if begun and not note["finished"] and note["gpus"] != gpus:
        raise PotstillError(f"{noted} was begun with --gpus {note['gpus']}: go on with as many, {mend}.")
    return not differing


def _words(job: Job, folder: Path, gpus: int) -> list[str]:
    """Return the verb and its options."""
    words = job.verb.split()
    options = dict(job.options)
    if job.minutes is not None and "--max_steps" not in job.more:
        options["max_train_minutes"] = round(job.minutes / max(gpus, 1), 4)
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    words += ["--output_dir", str(folder), *job.more]
    if job.verb in RESUMABLE:
        if last_checkpoint(folder) is not None:
            words += ["--resume_from_checkpoint", "true"]
        elif folder.is_dir():  # interrupted before its first checkpoint
            words += ["--overwrite_output_dir", "true"]
    return words


def _launcher(job: Job, gpus: int) -> list[str]:
    if job.distributed and gpus > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
        return [sys.executable, *torchrun, "-m", "potstill"]
    return [sys.executable, "-m", "potstill"]


def run_script(name: str, options: Sequence[str], gpus: list[str] | None = None, prefix: str = "") -> None:
    """Run one of the scripts beside this file as a process of its own.

    Args:
        name: of the script.
        options: as words.
        gpus: that it is to see; all if None.
        prefix: of every line that it prints.

    Raises:
        PotstillError: it failed, and has said why; its exit status is the error's.
    """
    seen = dict(os.environ) if gpus is None else _environment(gpus)
    status = run_words([sys.executable, "-m", f"reproduce.{name}", *options], seen, prefix)
    if status:
        raise _ended(f"reproduce.{name}", status)


def _environment(gpus: list[str]) -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONUNBUFFERED": "1"}


def _ended(what: str, status: int) -> PotstillError:
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        error = PotstillError(f"{what} was interrupted: give the same command again to go on.")
    else:
        error = PotstillError(f"{what} ended with status {status}; why, it says above.")
    error.exit_status = status
    return error


def _done(folder: Path, note: dict[str, Any]) -> Done:
    joules = [session["joules"] for session in note["sessions"]]
    return Done(
        folder=folder,
        gpus=note["gpus"],
        seconds=sum(session["seconds"] for session in note["sessions"]),
        joules=None if None in joules or not joules else sum(joules),
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
