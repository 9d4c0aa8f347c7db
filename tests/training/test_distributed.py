"""Two processes under a launcher learn what one process learns, and end with one message."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Learned, assert_alike, checkpoints, learned, tensors
from torch.distributed import TCPStore

from potstill.cli import main
from potstill.processes import first_to_fail

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# `--cpu` would start a single process, whatever `--num_processes` says.
ACCELERATE = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
]


def launch(launcher: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Start two processes that must end by themselves."""
    command = [sys.executable, "-m", *launcher, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def options(teacher: Path, corpus: Path, output_dir: Path, **changes: Any) -> list[str]:
    """Ten steps of eight blocks, four of them a process."""
    values = {
        "teacher": teacher,
        "corpus": corpus,
        "output_dir": output_dir,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_steps": 7,
        "eval_strategy": "no",
        "use_cpu": True,
    }
    return [f"--{name}={value}" for name, value in (values | changes).items()]


@pytest.fixture(scope="module")
def torchrun_output(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("torchrun") / "student"
    job = options(teacher_without_dropout, corpus_folder, folder)
    finished = launch(TORCHRUN, "-m", "potstill", "distill", *job)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"wrote {folder}/\n"
    return folder


def processes(output: Path) -> int:
    return json.loads((output / "results.json").read_text())["cost"]["processes"]


def test_torchrun(torchrun_output: Path, whole_batches: Learned) -> None:
    assert processes(torchrun_output) == 2
    assert checkpoints(torchrun_output) == ["checkpoint-10", "checkpoint-7"]
    assert_alike(learned(torchrun_output), whole_batches)


def test_accelerate_launch(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path, whole_batches: Learned
) -> None:
    folder = tmp_path / "student"
    job = options(teacher_without_dropout, corpus_folder, folder, save_strategy="no")
    finished = launch(ACCELERATE, "-m", "potstill", "distill", *job)
    assert finished.returncode == 0, finished.stderr
    assert processes(folder) == 2
    assert_alike(learned(folder), whole_batches)


RESUMED = """
import sys
import torch
from potstill import DistillationTrainer
from potstill.cli import main

train = DistillationTrainer.train

def train_and_look(self, **options):
    train(self, **options)
    wrapped = self.model_wrapped
    assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in self.student.parameters()}

DistillationTrainer.train = train_and_look
sys.exit(main(["distill", *sys.argv[1:]]))
"""


def test_resuming_two_processes(
    torchrun_output: Path, teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    script, folder = tmp_path / "resumed.py", tmp_path / "student"
    script.write_text(RESUMED)
    checkpoint = torchrun_output / "checkpoint-7"
    job = options(teacher_without_dropout, corpus_folder, folder, resume_from_checkpoint=checkpoint)
    finished = launch(TORCHRUN, script, *job)
    assert finished.returncode == 0, finished.stderr
    ours, whole = tensors(folder), tensors(torchrun_output)
    assert [name for name in whole if not torch.equal(ours[name], whole[name])] == []
    held_out = [json.loads((output / "results.json").read_text())["held_out"] for output in (folder, torchrun_output)]
    assert held_out[0]["final"] == held_out[1]["final"]


SPOILT = """
import os, sys
from potstill.cli import main
from potstill.training.step import DistillationStep

forward, calls = DistillationStep.forward, 0

def spoilt(self, *batch):
    global calls
    calls += 1
    losses = forward(self, *batch)
    if os.environ["RANK"] == "1" and calls == 9:  # of two micro-batches a step
        losses["loss"] = losses["loss"] * float("nan")
    return losses

DistillationStep.forward = spoilt
sys.exit(main(["distill", *sys.argv[1:]]))
"""


def test_a_loss_that_is_no_number_in_one_of_two_processes(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    script, folder, logs = tmp_path / "spoilt.py", tmp_path / "student", tmp_path / "logs"
    script.write_text(SPOILT)
    job = options(teacher_without_dropout, corpus_folder, folder, save_steps=3, logging_steps=10)
    # The launcher reports failures in its own words; these are the processes'.
    finished = launch([*TORCHRUN, "--redirects=3", f"--log-dir={logs}"], script, *job)
    assert finished.returncode != 0
    said = "".join(path.read_text() for path in logs.rglob("stderr.log"))
    assert len(list(logs.rglob("stderr.log"))) == 2
    assert said.count("not a finite number") == 1
    assert [line for line in said.splitlines() if line.startswith("potstill")] == [
        "potstill distill: The loss at step 5 is not a finite number, so training stopped: resume from the last good "
        f"checkpoint, {folder / 'checkpoint-3'}, with a lower --learning_rate or a longer warm-up."
    ]
    assert "Traceback" not in said
    assert checkpoints(folder) == ["checkpoint-3"]
    assert all(torch.isfinite(tensor).all() for tensor in tensors(folder / "checkpoint-3").values())


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """An environment as a launcher makes it for one of two processes, and the store that they share."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    return store


@pytest.mark.usefixtures("launched", "signals_restored")
def test_the_first_process_that_fails_tells_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ["distill", "--no_such_option", "1"]
    assert main(bad) == 2  # it may be the only one that fails, so its rank does not matter
    assert "no_such_option" in capsys.readouterr().err
    assert main(bad) == 2  # as if from the other process
    assert capsys.readouterr().err == ""

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(bad) == 2
    assert "no_such_option" in capsys.readouterr().err


@pytest.mark.usefixtures("launched", "signals_restored")
def test_a_broken_connection_is_told_only_if_nothing_else_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("potstill.options.apply", broken)
    with pytest.raises(RuntimeError):
        main(["demo"])
    assert main(["demo"]) == 1


def test_without_a_store_every_process_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert first_to_fail()
    assert first_to_fail()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert first_to_fail()
    assert first_to_fail()


@pytest.mark.usefixtures("signals_restored")
def test_a_run_that_is_done_leaves_its_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def training(*args: object) -> Path:
        store = f"file://{tmp_path / 'store'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        return tmp_path

    monkeypatch.setattr("potstill.options.apply", training)
    assert main(["demo"]) == 0
    assert not torch.distributed.is_initialized()
