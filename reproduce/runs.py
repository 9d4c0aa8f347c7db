"""Run potstill's verbs: skip finished runs, resume interrupted ones, and record time and energy."""

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
from reproduce.processes import passing_signals, run_command

RESUMABLE = ("distill", "pretrain")
"""Verbs with an option to resume. The others resume by themselves, or write all or nothing."""


@dataclass(frozen=True)
class Job:
    """A run of a verb.

    Attributes:
        name: its folder in the work folder.
        verb: verb of potstill's command line.
        options: name → value. A list becomes several arguments; None leaves the option out.
        minutes: GPU-minutes of training; None if something else ends the run.
        distributed: whether several GPUs share the run as processes of one training. Other verbs divide the GPUs
            themselves.
        more: command-line arguments after the options.
    """

    name: str
    verb: str
    options: dict[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    distributed: bool = True
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        folder: folder that it wrote.
        gpus: number of GPUs that it ran on; 0 for the CPU.
        seconds: wall-clock time of its processes, summed over all sessions.
        joules: energy that its GPUs took according to their sensors; None if a part was not measured.
    """

    folder: Path
    gpus: int
    seconds: float
    joules: float | None

    @property
    def cost(self) -> dict[str, Any]:
        """The cost of the run, as the results contain it."""
        return {"gpus": self.gpus, "seconds_by_the_clock": self.seconds, "joules": self.joules}


def run_job(job: Job, place: Place, gpus: list[str] | None = None, prefix: str = "") -> Done:
    """Run a verb to its end, unless it has finished before.

    Args:
        job: the run.
        place: folders and GPUs of the script.
        gpus: GPUs to use, named as in `CUDA_VISIBLE_DEVICES`; None for the first `place.gpus`.
        prefix: text before every line that the run prints.

    Raises:
        PotstillError: a different run already has this name, or the verb failed. The error has its exit status.
    """
    gpus = visible_gpus(place.gpus) if gpus is None else gpus
    folder, note_file = place.work / job.name, place.work / f"{job.name}.run.json"
    made_by = {
        "verb": job.verb,
        "options": {name: _plain(value) for name, value in job.options.items() if value is not None},
        "minutes": job.minutes,
        "more": list(job.more),
    }
    note: dict[str, Any] = {"sessions": []}
    if note_file.is_file():
        note = read_json(note_file)
        same = _is_same(note, made_by, note_file, folder, len(gpus))
        if same and note["finished"] and folder.is_dir():
            print(f"{prefix}{job.name}: already finished", flush=True)
            return _done(folder, note)
    note |= {"made_by": made_by, "gpus": len(gpus), "finished": False}
    write_text(note_file, json.dumps(note, indent=1) + "\n")
    command = [*_launcher(job, len(gpus)), *_arguments(job, folder, len(gpus))]
    print(f"{prefix}{job.name}: {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    with PowerMeter(gpus) as meter:
        status = run_command(command, _environment(gpus), prefix)
    note["sessions"].append({"seconds": round(time.monotonic() - started, 1), "joules": meter.joules})
    note["finished"] = status == 0
    write_text(note_file, json.dumps(note, indent=1) + "\n")
    if status:
        raise _failure(f"{job.name} (potstill {job.verb})", status)
    return _done(folder, note)


def run_jobs(jobs: Sequence[Job], place: Place) -> list[Done]:
    """Run verbs in parallel, `place.runs_per_gpu` on each GPU, or one after another on the CPU.

    A run of a small model leaves most of a GPU idle, so several may share one. The energy of a run is then that of the
    whole GPU in its time.

    Args:
        jobs: the runs, in the order in which they start.
        place: folders and GPUs of the script.

    Raises:
        PotstillError: a run failed. The other running ones are finished, but no further run starts.
    """
    runs = place.gpus * place.runs_per_gpu
    if runs <= 1:
        return [run_job(job, place) for job in jobs]
    free: Queue[str] = Queue()
    for gpu in visible_gpus(place.gpus) * place.runs_per_gpu:
        free.put(gpu)
    failed = threading.Event()

    def run_on_free_gpu(job: Job) -> Done | None:
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

    with passing_signals(), ThreadPoolExecutor(runs) as pool:
        futures: list[Future[Done | None]] = [pool.submit(run_on_free_gpu, job) for job in jobs]
    for future in futures:
        if (error := future.exception()) is not None:
            raise error
    return [done for future in futures if (done := future.result()) is not None]


def _is_same(note: dict[str, Any], made_by: dict[str, Any], note_file: Path, folder: Path, gpus: int) -> bool:
    """Return whether the recorded run is the run to do. A recorded run that wrote nothing may be replaced.

    Raises:
        PotstillError: it is a different run, or one that began on another number of GPUs.
    """
    before = note["made_by"]
    old, new = (run["options"] | {name: run[name] for name in run if name != "options"} for run in (before, made_by))
    differing = [
        f"{name} was {old.get(name)} and is {new.get(name)}" for name in old | new if old.get(name) != new.get(name)
    ]
    begun = note["finished"] or last_checkpoint(folder) is not None
    if made_by["verb"] == before["verb"] == "evaluate":  # the verb itself compares the options with its earlier results
        return not differing
    remedy = f"name another --work_dir, or delete {note_file} and its folder to start again"
    if differing and begun:
        raise PotstillError(f"{note_file} belongs to a different run ({'; '.join(differing)}): {remedy}.")
    if begun and not note["finished"] and note["gpus"] != gpus:
        raise PotstillError(f"{note_file} was begun with --gpus {note['gpus']}: use the same number, {remedy}.")
    return not differing


def _arguments(job: Job, folder: Path, gpus: int) -> list[str]:
    """Return the verb and its options as command-line arguments."""
    arguments = job.verb.split()
    options = dict(job.options)
    if job.minutes is not None and "--max_steps" not in job.more:
        options["max_train_minutes"] = round(job.minutes / max(gpus, 1), 4)
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    arguments += ["--output_dir", str(folder), *job.more]
    if job.verb in RESUMABLE:
        if last_checkpoint(folder) is not None:
            arguments += ["--resume_from_checkpoint", "true"]
        elif folder.is_dir():  # interrupted before its first checkpoint
            arguments += ["--overwrite_output_dir", "true"]
    return arguments


def _launcher(job: Job, gpus: int) -> list[str]:
    if job.distributed and gpus > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
        return [sys.executable, *torchrun, "-m", "potstill"]
    return [sys.executable, "-m", "potstill"]


def run_script(name: str, options: Sequence[str], gpus: list[str] | None = None, prefix: str = "") -> None:
    """Run one of the scripts in this folder as a separate process.

    Args:
        name: name of the script.
        options: its command-line arguments.
        gpus: GPUs that are visible to it; None for all.
        prefix: text before every line that it prints.

    Raises:
        PotstillError: it failed, and has printed the reason. The error has its exit status.
    """
    environment = dict(os.environ) if gpus is None else _environment(gpus)
    status = run_command([sys.executable, "-m", f"reproduce.{name}", *options], environment, prefix)
    if status:
        raise _failure(f"reproduce.{name}", status)


def _environment(gpus: list[str]) -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONUNBUFFERED": "1"}


def _failure(what: str, status: int) -> PotstillError:
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        error = PotstillError(f"{what} was interrupted: repeat the same command to continue.")
    else:
        error = PotstillError(f"{what} ended with status {status}. The reason is printed above.")
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
    """Return a value in the form that JSON would give back."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
