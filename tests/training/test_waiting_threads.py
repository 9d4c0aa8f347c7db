"""A run on a CPU says when other processes or a limit slow its threads down, and what helps."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import distillation, new_trainer
from transformers import TrainerState

from potstill.training import waiting_threads as room
from potstill.training.waiting_threads import Seconds, WaitingThreads, competitors, core_limit, seconds_of_threads


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(room, "core_limit", lambda: None)


def said(capsys: pytest.CaptureFixture[str], steps: int = 5, device: str = "cpu") -> str:
    """What the callback prints in a few steps."""
    callback, args, state = WaitingThreads(), SimpleNamespace(device=torch.device(device)), TrainerState()
    callback.on_train_begin(args, state, None)  # type: ignore[arg-type]
    for _ in range(steps):
        callback.on_step_end(args, state, None)  # type: ignore[arg-type]
    return capsys.readouterr().err


def test_the_number_of_competitors() -> None:
    before = {"1": Seconds(5.0, 1.0), "2": Seconds(3.0, 0.0), "ended": Seconds(9.0, 9.0)}
    after = {"1": Seconds(7.0, 2.0), "2": Seconds(5.0, 1.0), "new": Seconds(9.0, 9.0)}
    assert competitors(before, after, 2) == pytest.approx(1.0)  # three processes on two cores
    assert competitors(before, before, 2) == 0.0


@pytest.mark.slow  # and it needs a quiet machine
@pytest.mark.skipif(not seconds_of_threads(), reason="the system does not say how long threads wait")
def test_a_busy_process_on_the_same_core() -> None:
    measured = """
import os, subprocess, sys, time
from potstill.training.waiting_threads import competitors, seconds_of_threads
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def measure():
    before, until = seconds_of_threads(), time.monotonic() + 1
    while time.monotonic() < until:
        pass
    return competitors(before, seconds_of_threads(), 1)
other = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
other.stdout.readline()
together = measure()
other.kill()
print(together)
"""
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.6  # 1 on a core that is quiet otherwise, more on a busy one


@pytest.mark.parametrize(("waiting", "expected"), [(1.0, "about 1.0 of the 2 cores"), (0.1, "")])
def test_waiting_threads_are_reported_once(
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waiting: float,
    expected: str,
) -> None:
    calls = iter(range(10))
    monkeypatch.setattr(room, "SECONDS", 0.0)
    monkeypatch.setattr(room, "seconds_of_threads", lambda: {"1": Seconds(2.0 * (n := next(calls)), waiting * n)})
    text = said(capsys)
    assert expected in text
    assert text.count("OMP_NUM_THREADS=1") == bool(expected)
    assert next(calls) == 2  # measured twice, and never again


def test_a_limit_of_the_container(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "core_limit", lambda: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "with 8 threads, but a limit of its container lets it use 1.5 cores" in said(capsys)
    monkeypatch.setattr(room, "core_limit", lambda: 8.0)
    assert said(capsys, steps=0) == ""


@pytest.mark.parametrize("case", ["chosen", "one thread", "gpu"])
def test_nothing_is_said_where_nothing_can_be_done(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.setattr(room, "core_limit", lambda: 0.5)
    if case == "chosen":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if case == "one thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert said(capsys, device="cuda" if case == "gpu" else "cpu") == ""


def test_limits_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    new, old = tmp_path / "cpu.max", tmp_path / "cpu"
    assert core_limit(new, old) is None
    old.mkdir()
    (old / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in (("-1", None), ("50000", 0.5)):
        (old / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert core_limit(new, old) == cores
    for text, cores in (("max 100000", None), ("250000 100000", 2.5)):
        new.write_text(f"{text}\n")
        assert core_limit(new, old) == cores


def test_every_run_measures(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(room, "core_limit", lambda: 1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1)).train()
    finally:
        torch.set_num_threads(threads)
    assert "OMP_NUM_THREADS=1" in capsys.readouterr().err
    assert "OMP_NUM_THREADS" not in os.environ
