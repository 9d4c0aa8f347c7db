"""Two processes learn what one process learns from batches of twice the size."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning_samples import SPANS, finetuned, flags, results
from safetensors.torch import load_file

from potstill.finetuning.job import Job
from potstill.finetuning.trainer import FinetuneTrainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
def test_torchrun(new_model: Callable[..., Path], glue: Path, tmp_path: Path) -> None:
    # Dropout's random numbers would be others for other batches.
    bert = new_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    options: dict[str, Any] = {"model": bert, "task": "sst2", "task_data": glue, "max_train_samples": 24}
    finetuned(**options, output_dir=tmp_path / "teacher", max_steps=2)
    options["teacher"] = tmp_path / "teacher"
    two, one = tmp_path / "two", tmp_path / "one"
    command = [*TORCHRUN, "-m", "potstill", *flags(**options, output_dir=two, per_device_train_batch_size=4)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("wrote") == 1
    assert run.stderr.count("computing the teacher's logits") == 1
    found = results(two)
    whole = finetuned(**options, output_dir=one, per_device_train_batch_size=8)
    for name in ("steps", "rows", "score"):
        assert found[name] == whole[name]
    mine, other = (load_file(folder / "model.safetensors") for folder in (two, one))
    for name, tensor in other.items():
        torch.testing.assert_close(mine[name], tensor, atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_a_step_uses_every_trained_parameter(
    bert: Path, glue: Path, squad: Path, new_job: Callable[..., Job], task: str, freeze_encoder: bool
) -> None:
    """Or else processes would wait for the gradient of the one that is not used."""
    spans = SPANS if task == "squad" else {}
    data = str(glue if task == "sst2" else squad)
    job = new_job(model=str(bert), task=task, task_data=data, freeze_encoder=freeze_encoder, **spans)
    trainer = FinetuneTrainer(job.new_model(), job)
    trainer.model(**job.train.__getitems__([0, 1, 2]))["loss"].backward()
    unused = [name for name, p in trainer.trained.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
