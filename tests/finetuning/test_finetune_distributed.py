"""Two processes learn what one process learns from batches of twice the size."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning_samples import finetuned, flags, results
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize("case", ["taught", "frozen spans"])
def test_torchrun(new_model: Callable[..., Path], glue: Path, squad: Path, tmp_path: Path, case: str) -> None:
    # Dropout's random numbers would be others for other batches.
    bert = new_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if case == "taught":
        options: dict[str, Any] = {"model": bert, "task": "sst2", "task_data": glue, "max_train_samples": 24}
        finetuned(**options, output_dir=tmp_path / "teacher", max_steps=2)
        options["teacher"] = tmp_path / "teacher"
    else:
        options = {"model": bert, "task": "squad", "task_data": squad, "freeze_encoder": True, "num_train_epochs": 1}
    two, one = tmp_path / "two", tmp_path / "one"
    command = flags(**options, output_dir=two, per_device_train_batch_size=4)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*TORCHRUN, "-m", "potstill", *command], capture_output=True, text=True, timeout=240, env=env, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("wrote") == 1
    assert run.stderr.count("computing the teacher's logits") == (case == "taught")
    found = results(two)
    whole = finetuned(**options, output_dir=one, per_device_train_batch_size=8)
    assert found["steps"] == whole["steps"]
    assert found["rows"] == whole["rows"]
    if case == "taught":
        assert found["score"] == whole["score"]
        mine, other = (load_file(folder / "model.safetensors") for folder in (two, one))
        for name, tensor in other.items():
            torch.testing.assert_close(mine[name], tensor, atol=2e-4, rtol=0, msg=name)
