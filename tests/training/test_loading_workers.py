"""Workers that load data outlive the signals that launchers send to all processes, and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import checkpoints, distillation, new_trainer
from torch.utils.data import DataLoader, Dataset

from potstill.training.loading_workers import _start, outliving_signals


class Slow(Dataset[int]):
    """Numbers that take so long to load that the signal comes in between."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return index


def started() -> tuple[Any, Any]:
    """Return the iterator of a loader with one worker, and the process of the worker."""
    loader = DataLoader(Slow(), batch_size=1, num_workers=1, prefetch_factor=1)
    batches = iter(outliving_signals(loader))
    assert int(next(batches)) == 0  # the worker runs
    return batches, batches._workers[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_worker_outlives_the_signal_of_a_launcher(number: signal.Signals) -> None:
    batches, worker = started()
    launcher = f"import os; os.kill({worker.pid}, {number.value})"  # not the parent of the worker
    subprocess.run([sys.executable, "-c", launcher], check=True)
    assert [int(batch) for batch in batches] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal")
def test_its_run_ends_it() -> None:
    _, worker = started()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=60)
    ended = worker.exitcode
    worker.kill()  # otherwise Python waits for it
    assert ended == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot fork safely")
def test_a_worker_is_a_fork() -> None:
    batches, worker = started()
    assert worker._parent_pid == os.getpid()
    assert Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    assert len(list(batches)) == 5


def test_loaders_of_evaluations_have_such_workers_too(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    workers: dict[str, Any] = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path, **workers))
    for _ in range(2):  # `Trainer` keeps the loader of persistent workers
        evaluated = trainer.get_eval_dataloader()
    for loader in (trainer.get_train_dataloader(), evaluated, trainer.get_test_dataloader(trainer.eval_dataset)):
        inner = getattr(loader, "base_dataloader", loader)
        start = inner.worker_init_fn
        assert start.func is _start
        assert getattr(start.args[0], "func", None) is not _start  # once


@pytest.mark.slow
def test_a_run_whose_whole_group_is_terminated_saves_its_step(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    options = {
        "teacher": teacher_folder,
        "corpus": corpus_folder,
        "output_dir": tmp_path / "student",
        "max_steps": 4000,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "eval_strategy": "no",
        "eval_on_start": False,
        "logging_steps": 1,
        "dataloader_num_workers": 2,
        "use_cpu": True,
    }
    command = [sys.executable, "-m", "potstill", "distill", *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("step "):
                os.killpg(run.pid, signal.SIGTERM)
                break
        said = run.stderr.read()
    assert run.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert len(checkpoints(tmp_path / "student")) == 1
