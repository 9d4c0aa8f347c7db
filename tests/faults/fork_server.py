"""Run commands of potstill in milliseconds: a process imports everything once, and forks a child for each command.

Run as a script, it is that process. It reads a job in JSON from each line of its input, and answers with the number of
the child and later with its status.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import psutil

IMPORTED = (
    *("potstill.corpus.prepare", "potstill.distillation", "potstill.training.distill", "potstill.training.pretrain"),
    *(
        "potstill.finetuning.finetune",
        "potstill.evaluation.evaluate",
        "potstill.export.export",
        "potstill.bilstm.model",
    ),
    *("transformers.models.bert.modeling_bert", "transformers.models.distilbert.modeling_distilbert"),
    *("transformers.models.bert.tokenization_bert", "accelerate", "accelerate.scheduler", "datasets", "yaml"),
    *("torch.onnx._internal.exporter._core", "onnxruntime", "onnxscript", "onnxscript.optimizer"),
    *("torch._dynamo", "torch._export", "torch.export", "torch.utils.data._utils.worker", "torch.distributed.tensor"),
    *("sklearn.metrics", "scipy.stats", "torch.optim.adamw", "transformers.integrations.tensor_parallel"),
)
"""Modules that the verbs import when they run."""

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.utime", "os.link"}
"""Events of Python that change the file system; opening a file to write is one too."""


@dataclass
class Child:
    """A command that runs.

    Attributes:
        pid: number of its process, which leads a session of its own.
        server: the server that forked it.
        started: when, by the monotonic clock.
        seconds: how long it ran, once it has ended.
    """

    pid: int
    server: ForkServer
    started: float
    seconds: float = 0.0

    def kill(self) -> None:
        """Kill it as the system does: nothing of it runs any more."""
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return its status, or minus the number of the signal that ended it."""
        status = int(self.server.answer()["status"])
        self.seconds = time.monotonic() - self.started
        left = self.left_behind()
        assert not left, f"these processes outlive the command: {left}"
        return status

    def left_behind(self, patience: float = 30.0) -> list[str]:
        """Return the processes that it started and that still run after some seconds."""
        until = time.monotonic() + patience
        while True:
            found = []
            for process in psutil.process_iter(["pid", "status", "cmdline"]):
                try:
                    if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == self.pid:
                        found.append(" ".join(process.info["cmdline"] or ["?"])[:200])
                except ProcessLookupError:
                    pass
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.05)


class ForkServer:
    """Starts the process that forks. Only one command runs at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-u", __file__]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | dict(environment))
        self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the fork server ended with {self.process.wait()}"
        return json.loads(line)

    def start(
        self,
        argv: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        kill_at: int | None = None,
        count_to: Path | None = None,
    ) -> Child:
        """Start a command.

        Args:
            argv: the words after `potstill`.
            log: file to append its output to.
            environment: further variables.
            kill_at: number of the change of the file system, from 0, before which the command is killed.
            count_to: file to write the number of changes to when the command ends by itself.
        """
        job = {"argv": [*argv], "log": str(log), "environment": dict(environment or {})}
        job |= {"kill_at": kill_at, "count_to": None if count_to is None else str(count_to)}
        return self._send(job)

    def _send(self, job: dict[str, Any]) -> Child:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Child(int(self.answer()["pid"]), self, time.monotonic())

    def run_code(self, code: str, *arguments: object) -> tuple[int, str]:
        """Run Python code in a child, with arguments in `sys.argv`; return its status and what it printed."""
        with NamedTemporaryFile() as log:
            job = {"code": code, "argv": [*map(str, arguments)], "log": log.name, "environment": {}}
            status = self._send(job | {"kill_at": None, "count_to": None}).wait()
            return status, Path(log.name).read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Be the process that forks."""
    import importlib

    import torch

    place = Path(__file__).parent
    sys.path += [str(place), str(place.parent), str(place.parent / "training")]  # for code that uses samples of tests
    torch.set_num_threads(1)
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except ImportError:  # of an extra that is not installed, or another version's: the command imports it then
            print(f"{name} is not there to be imported before", file=sys.stderr)
    gc.collect()
    gc.freeze()  # the collections of the children need not look at what was imported
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_child(job)
        print(json.dumps({"pid": pid}), flush=True)
        status = os.waitpid(pid, 0)[1]
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def _be_child(job: dict[str, Any]) -> None:
    from potstill.cli import main

    os.setsid()
    status = 70  # of an exception that is a bug
    try:
        with open(job["log"], "a") as log, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(job["environment"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        changes = _count_changes(job["kill_at"]) if job["kill_at"] is not None or job["count_to"] else [0]
        if "code" in job:
            sys.argv = ["code", *job["argv"]]
            exec(job["code"], {"__name__": "code"})
            status = 0
        else:
            status = main(job["argv"])
        if job["count_to"]:
            Path(job["count_to"]).write_text(str(changes[0]))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _count_changes(kill_at: int | None) -> list[int]:
    """Count the changes of the file system from now on, and kill this process before one of them."""
    count, own = [0], os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (written or event in CHANGES) and os.getpid() == own:
            if count[0] == kill_at:
                os.kill(own, signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return count


if __name__ == "__main__":
    serve()
