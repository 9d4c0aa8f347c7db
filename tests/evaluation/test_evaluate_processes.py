"""Runs in processes: what each keeps for its next run, and how all of them end."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import SIZES, Disturbed, Json

from potstill.errors import PotstillError
from potstill.evaluation import run as run_module
from potstill.evaluation.pool import EvaluationProgress, RunPool
from potstill.evaluation.run import PlannedRun, do
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.result import RunResult

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub", "own_cache")


def test_what_is_kept_is_of_the_same_model_data_and_length(
    models: dict[str, Path], make_teacher: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    def job(**options: Any) -> Job:
        values: Json = {"model": str(models["teacher"]), "task": "sst2", "task_data": str(data), "use_cpu": True}
        return run_module._job(FinetuneArguments(output_dir="-", **values | options))

    first = job(seed=1)
    again = job(seed=2, learning_rate=1.0)
    assert again.train is first.train
    assert (again.args.seed, again.args.learning_rate) == (2, 1.0)
    assert job(max_length=4).train.lengths.max() == 4
    assert job().train.lengths.max() == 5
    assert job(model=str(models["student"])).train is not first.train
    assert len(job(max_train_samples=5).train) == 5
    assert "labels" in job(task="stsb").train.values
    assert job(task="stsb").data.task.name == "stsb"
    assert run_module.data_fingerprint(job().data) != run_module.data_fingerprint(job(task="stsb").data)
    assert job().hidden_teacher is None


def planned(folder: Path, models: dict[str, Path], data: Path, *disturbances: str) -> list[tuple[PlannedRun, float]]:
    """A run for each disturbance; they are handed out in order."""
    found: list[tuple[PlannedRun, float]] = []
    for seed, disturbance in enumerate(disturbances):
        options = {"model": str(models["student"]), "task": "sst2", "task_data": str(data), "seed": seed}
        options |= {name: value for name, value in SIZES.items() if name != "seeds"}
        options["output_dir"] = str(folder / f"run-{seed}")
        work = Disturbed("student", options, folder / f"seed-{seed}.json", disturbance=disturbance)
        found.append((work, 1.0 if disturbance else 2.0))
    return found


def alive(number: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended, perhaps while it was looked at
        return False


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import torch first. They cannot train: libraries' threads are not in them."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("*.pid"))]


def test_processes_do_what_one_does(
    models: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = planned(tmp_path / "processes", models, data, "", "", "", "refuse")
    some[3] = (replace(some[3][0], may_fail=True), 1.0)
    before = dict(os.environ)
    with RunPool([None, "0"]) as pool:
        pool.do_all(some[:2], EvaluationProgress(4.0, 2, 0))
        pool.do_all(some[2:], EvaluationProgress(3.0, 2, 0))  # in the same processes
    assert os.environ == before
    lines = capsys.readouterr().err.splitlines()
    assert [line[:5] for line in lines] == ["[1/2]", "[2/2]"] * 2
    assert any("seed 3 · no score: Its weights are broken." in line for line in lines)
    numbers = pids(tmp_path / "processes")
    assert len(set(numbers)) == 2
    assert not any(map(alive, numbers))
    for work, _ in planned(tmp_path / "here", models, data, "", "", ""):
        do(work)
    for seed in range(3):
        theirs, ours = (RunResult.load(tmp_path / where / f"seed-{seed}.json") for where in ("processes", "here"))
        same = {"hardware": "", "seconds": {}, "date": "", "rows_per_second": 0.0}
        assert replace(theirs, **same) == replace(ours, **same)


@pytest.mark.parametrize(
    ("disturbance", "told"),
    [
        (
            "kill",
            r"^student · SST-2 · lr 0.001 · seed 1: the process of this run was killed by signal 9, perhaps .* again",
        ),
        ("refuse", r"^student · SST-2 · lr 0.001 · seed 1: Its weights are broken \(the finished runs are kept\)\.$"),
        ("bug", r"seed 1:\nTraceback(.|\n)*ZeroDivisionError: a bug"),
    ],
)
def test_a_process_that_fails_ends_all(
    forked: None, models: dict[str, Path], data: Path, tmp_path: Path, disturbance: str, told: str
) -> None:
    some = planned(tmp_path, models, data, "sleep", disturbance, "sleep")
    started = time.monotonic()
    error = RuntimeError if disturbance == "bug" else PotstillError
    with pytest.raises(error, match=told), RunPool([None, None]) as pool:
        pool.do_all(some, EvaluationProgress(3.0, 3, 0))
    assert time.monotonic() - started < 60
    assert not any(map(alive, pids(tmp_path)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_evaluation(
    forked: None, models: dict[str, Path], data: Path, tmp_path: Path, number: int
) -> None:
    parent = os.fork()
    if parent == 0:
        status = 1
        try:
            signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
            with contextlib.suppress(PotstillError), RunPool([None, "0"]) as pool:
                pool.do_all(planned(tmp_path, models, data, "sleep"), EvaluationProgress(1.0, 1, 0))
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while not pids(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (worker,) = pids(tmp_path)
    os.kill(worker, signal.SIGINT)  # as a terminal does to all
    time.sleep(0.5)
    assert alive(worker)  # and the parent ends it
    os.kill(parent, number)
    status = os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1])
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    gone = time.monotonic() + 20
    while (left := alive(worker)) and time.monotonic() < gone:
        time.sleep(0.05)
    if left:
        os.kill(worker, signal.SIGKILL)
    assert not left
