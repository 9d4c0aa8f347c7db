"""Runs of several processes under `torchrun`, and the blocks that each of their steps read."""

import json
import os
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

BLOCKS_PER_STEP = 12  # which 1, 2, 3 and 4 processes can share

# A process notes each micro-batch that it learns from. It gets a signal in the step that STOP_IN names.
NOTING = """
import json, os, signal, sys
from potstill import DistillationTrainer
from potstill.cli import main

compute_losses = DistillationTrainer.compute_losses
told = False

def noting(self, model, inputs):
    global told
    step = self.state.global_step + 1
    with open(os.environ["NOTES"], "a") as file:
        line = json.dumps([os.environ.get("PART", ""), step, inputs["sample_index"].tolist()]) + "\\n"
        file.write(line)
    if str(step) == os.environ.get("STOP_IN") and not told and os.environ.get("RANK", "0") == "0":
        told = True
        os.kill(os.getpid(), signal.SIGTERM)
    return compute_losses(self, model, inputs)

DistillationTrainer.compute_losses = noting
sys.exit(main(["distill", *sys.argv[1:]]))
"""


def job(teacher: Path, corpus: Path, output_dir: Path, **changes: Any) -> list[str]:
    """Three epochs of three steps, each of twelve blocks."""
    values = {
        "teacher": teacher,
        "corpus": corpus,
        "output_dir": output_dir,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 6,
        "logging_steps": 1,
        "eval_strategy": "no",
        "use_cpu": True,
        "resume_from_checkpoint": "auto",
    }
    return [f"--{name}={value}" for name, value in (values | changes).items()]


def run(processes: int, script: Path, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a number of processes, without a launcher if it is one. They must end by themselves."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *arguments]
    variables = {name: str(value) for name, value in environment.items()}
    env = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)


def blocks_of_steps(notes: Path) -> dict[int, list[int]]:
    """Return the sample indices that all processes learned from in each step, sorted. A repeated step is an error."""
    parts: dict[int, set[str]] = defaultdict(set)
    found: dict[int, list[int]] = defaultdict(list)
    for line in notes.read_text().splitlines():
        part, step, indices = json.loads(line)
        parts[step].add(part)
        found[step] += indices
    assert all(len(of_step) == 1 for of_step in parts.values()), parts
    return {step: sorted(indices) for step, indices in sorted(found.items())}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
