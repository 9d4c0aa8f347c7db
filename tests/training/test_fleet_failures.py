"""One process of a run fails: all end within a minute, and one message says why."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from fleet_samples import free_port, job
from runs import checkpoints
from torch.distributed import DistBackendError, TCPStore

from potstill import PotstillError, processes
from potstill.processes import first_to_fail, open_new_store
from potstill.training.connection import connected

FAILING = """
import os, sys, time
from potstill import DistillationTrainer, PotstillError
from potstill.cli import main

compute_loss = DistillationTrainer.compute_loss

def failing(self, *args, **options):
    if os.environ["RANK"] == "1" and self.state.global_step == 5:
        with open(os.environ["FAILED_AT"], "w") as file:
            file.write(str(time.time()))
        if os.environ["HOW"] == "killed":
            os.kill(os.getpid(), 9)
        raise PotstillError("This process fails on purpose.")
    return compute_loss(self, *args, **options)

DistillationTrainer.compute_loss = failing
sys.exit(main(["distill", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [("error", "This process fails on purpose."), ("killed", "Process 0 of 2 cannot reach another one")],
)
def test_a_failing_process_ends_all(
    how: str, message: str, teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    script, folder, failed, logs = (tmp_path / name for name in ("failing.py", "student", "failed", "logs"))
    script.write_text(FAILING)
    options = {"gradient_accumulation_steps": 1, "save_steps": 2}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--redirects=3"]
    command += [f"--log-dir={logs}", str(script), *job(teacher_without_dropout, corpus_folder, folder, **options)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "FAILED_AT": str(failed), "HOW": how}
    finished = subprocess.run(command, capture_output=True, timeout=240, env=env, check=False)
    assert time.time() - float(failed.read_text()) < 60
    assert finished.returncode != 0
    said = "".join(path.read_text() for path in logs.rglob("stderr.log"))
    assert said.count("potstill distill:") == said.count(message) == 1
    assert "Traceback" not in said
    assert "checkpoint-4" in checkpoints(folder)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[…/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.77.0.2]:15559."),
        RuntimeError("[…/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 20000ms for recv"),
        DistBackendError("NCCL communicator was aborted on rank 0."),
    ],
)
def test_a_lost_partner_is_told_in_one_sentence(error: RuntimeError, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    args = SimpleNamespace(world_size=2, process_index=1, output_dir=str(tmp_path))
    with (
        pytest.raises(PotstillError, match=r"Process 1 of 2 cannot reach.*last good checkpoint is .*checkpoint-3\."),
        connected(args),  # type: ignore[arg-type]
    ):
        raise error
    alone = SimpleNamespace(world_size=1, process_index=0, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match=r"gloo|NCCL"), connected(alone):  # type: ignore[arg-type]
        raise error


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    args = SimpleNamespace(world_size=2, process_index=1, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="shapes"), connected(args):  # type: ignore[arg-type]
        raise RuntimeError("The shapes do not fit: timed out.")


def test_the_first_process_hosts_the_store_where_the_launcher_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchrun` leaves it to the first process when machines may join. They have not counted the same attempts."""
    hosted: list[TCPStore] = []
    monkeypatch.setattr(processes, "_HOSTED", hosted)
    variables = {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "TORCHELASTIC_RESTART_COUNT": 2}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    open_new_store()
    assert os.environ["MASTER_PORT"] == str(variables["MASTER_PORT"])  # this attempt has a store of its own
    assert first_to_fail()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not first_to_fail()
    # PyTorch's group shares the store of this process.
    again = TCPStore(
        "localhost", int(variables["MASTER_PORT"]), is_master=True, multi_tenant=True, wait_for_workers=False,
        timeout=timedelta(seconds=5),
    )  # fmt: skip
    assert again.add("potstill/failed/0", 0) == 2
