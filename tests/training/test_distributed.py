"""Two processes under a launcher learn what one process learns, and end with one message."""

import itertools
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import WHOLE_BATCHES, Learned, assert_alike, checkpoints, distillation, learned, tensors
from torch.distributed import TCPStore

from potstill import PotstillError, distill
from potstill import processes as processes_module
from potstill.cli import main
from potstill.processes import first_to_fail, once

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


@pytest.mark.slow  # test_a_launcher_that_restarts_a_run_lets_it_go_on has two processes as well
def test_torchrun(torchrun_output: Path, whole_batches: Learned) -> None:
    assert processes(torchrun_output) == 2
    assert checkpoints(torchrun_output) == ["checkpoint-10", "checkpoint-7"]
    assert_alike(learned(torchrun_output), whole_batches)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        f"checkpoint, {folder / 'checkpoint-3'}, with a lower --learning_rate or a longer warm-up, or leave out such "
        "steps with --on_nan skip."
    ]
    assert "Traceback" not in said
    assert checkpoints(folder) == ["checkpoint-3"]
    assert all(torch.isfinite(tensor).all() for tensor in tensors(folder / "checkpoint-3").values())


SPOILT_IN_TURN = """
import hashlib, json, os, sys
from transformers import TrainerCallback
from potstill import DistillationTrainer
from potstill.cli import main
from potstill.training.step import DistillationStep

rank, forward, train = int(os.environ["RANK"]), DistillationStep.forward, DistillationTrainer.train
calls, weights = 0, {}

def spoilt(self, *batch):
    global calls
    calls += 1
    losses = forward(self, *batch)
    if (rank, calls) in ((1, 9), (0, 14)):  # of two micro-batches a step: in steps 5 and 7, in one process each
        losses["loss"] = losses["loss"] * float("nan")
    return losses

class Weights(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **more):
        content = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
        weights[state.global_step] = hashlib.sha256(content).hexdigest()

def train_and_tell(self, **options):
    self.add_callback(Weights())
    try:
        return train(self, **options)
    finally:
        with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
            json.dump({"weights": list(weights.values()), "skipped": self.losses.skipped}, file)

DistillationStep.forward, DistillationTrainer.train = spoilt, train_and_tell
sys.exit(main(["distill", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 1])
def test_a_step_that_one_process_must_skip_is_skipped_by_both(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path, most: int
) -> None:
    script, folder = tmp_path / "spoilt.py", tmp_path / "student"
    script.write_text(SPOILT_IN_TURN)
    job = options(teacher_without_dropout, corpus_folder, folder, save_steps=3, on_nan="skip", max_skipped_steps=most)
    finished = launch(TORCHRUN, script, tmp_path, *job)
    assert (finished.returncode == 0) == (most == 2), finished.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["skipped"] == [5, 7]
    same = [number for number, (one, two) in enumerate(itertools.pairwise(first["weights"]), 2) if one == two]
    for step in (5, 7):
        assert finished.stderr.count(f"step {step}: skipped, because") == 1
    if most == 2:
        assert same == [5, 7]
        assert len(first["weights"]) == 10
        assert json.loads((folder / "results.json").read_text())["skipped_steps"] == [5, 7]
        assert all(torch.isfinite(tensor).all() for tensor in tensors(folder).values())
    else:
        assert same == [5]
        said = [line for line in finished.stderr.splitlines() if line.startswith("potstill")]
        assert len(said) == 1
        assert "2 steps had" in said[0]
        assert "5, 7), more than the 1 " in said[0]
        assert checkpoints(folder) == ["checkpoint-3", "checkpoint-6"]


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

    monkeypatch.setattr("potstill.signatures.apply", broken)
    with pytest.raises(RuntimeError):
        main(["demo"])
    assert main(["demo"]) == 1


WORKER_THAT_DIES = """
import os, signal, sys
from potstill import DistillationTrainer
from potstill.cli import main

compute_loss = DistillationTrainer.compute_loss

def dies(self, *args, **options):
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.state.global_step) == ("1", "0", 5):
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_loss(self, *args, **options)

DistillationTrainer.compute_loss = dies
sys.exit(main(["distill", *sys.argv[1:]]))
"""


def test_a_launcher_that_restarts_a_run_lets_it_go_on(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path, whole_batches: Learned
) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "student"
    script.write_text(WORKER_THAT_DIES)
    (folder / "checkpoint-9").mkdir(parents=True)  # of an earlier run
    job = options(teacher_without_dropout, corpus_folder, folder, save_steps=3, save_total_limit=9)
    # Not --standalone: this rendezvous keeps its store when it restarts the processes.
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1", f"--master-port={port}"]
    finished = launch(launcher, script, *job, "--overwrite_output_dir", "true")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"wrote {folder}/\n"
    assert processes(folder) == 2
    assert finished.stderr.count("step 1/10") == 1
    assert finished.stderr.count("step 4/10") == 1  # the first line after the restart, from checkpoint-3
    assert checkpoints(folder) == ["checkpoint-10", "checkpoint-3", "checkpoint-6", "checkpoint-9"]
    assert (folder / "checkpoint-9" / "optimizer.pt").is_file()
    assert_alike(learned(folder), whole_batches)


def waiting(launched: TCPStore, monkeypatch: pytest.MonkeyPatch, outcome: BaseException | None) -> list[str]:
    """Let the first process of two do something once, while the second one waits. Return what was called."""
    called: list[str] = []

    def work() -> None:
        called.append(os.environ["RANK"])
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(processes_module, "_TASKS", itertools.repeat(0))
    monkeypatch.setenv("RANK", "0")
    with suppress(PotstillError, OSError):
        once("prepare a corpus", work)
    monkeypatch.setenv("RANK", "1")
    once("prepare a corpus", work)
    return called


def test_work_is_done_once(launched: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting(launched, monkeypatch, None) == ["0"]


@pytest.mark.parametrize("outcome", [PotstillError("The text is empty."), OSError("The text is empty.")])
def test_work_that_failed_has_failed_for_all(
    launched: TCPStore, monkeypatch: pytest.MonkeyPatch, outcome: Exception
) -> None:
    with pytest.raises(PotstillError, match="The text is empty"):
        waiting(launched, monkeypatch, outcome)


def test_without_a_store_nothing_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(PotstillError, match="2 processes could not prepare a corpus together"):
        once("prepare a corpus", lambda: None)


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

    monkeypatch.setattr("potstill.signatures.apply", training)
    assert main(["demo"]) == 0
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_an_encoder_without_a_head(teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """A narrower one, with the projection that is trained beside it; its pooler gets no gradient."""
    choices = {"headless": True, "layers": "alternate", "hidden_size": 16}
    job = options(teacher_without_dropout, corpus_folder, tmp_path / "two", **choices, eval_strategy="epoch")
    finished = launch(TORCHRUN, "-m", "potstill", "distill", *job)
    assert finished.returncode == 0, finished.stderr
    assert processes(tmp_path / "two") == 2
    args = distillation(teacher_without_dropout, corpus_folder, tmp_path / "one", **WHOLE_BATCHES, **choices)
    one, two = tensors(distill(args)), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=0, msg=name)
    final = [json.loads((tmp_path / name / "results.json").read_text())["held_out"]["final"] for name in ("one", "two")]
    assert final[1]["loss"] == pytest.approx(final[0]["loss"], rel=1e-3)
    assert final[1]["cosine"] == pytest.approx(final[0]["cosine"], rel=1e-3)
