"""Two machines train together. One is killed, the other goes on alone; the first comes back, and both go on."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_machines import Machine, newest_checkpoint, two_machines, wait_for_checkpoint
from fleet_samples import job
from runs import Learned, assert_alike, distillation, learned

from potstill import distill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE = 240  # seconds; a restart takes about 20 on an idle machine of two cores

SLOWED = """
import sys, time
from potstill import DistillationTrainer
from potstill.cli import main

compute_loss = DistillationTrainer.compute_loss

def slowed(self, *args, **options):
    time.sleep(0.1)
    return compute_loss(self, *args, **options)

DistillationTrainer.compute_loss = slowed
sys.exit(main(["distill", *sys.argv[1:]]))
"""


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    try:
        with two_machines() as found:
            yield found
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("network namespaces cannot be made here")


def without_key_biases(found: Learned) -> Learned:
    """Attention does not depend on them: their gradient is rounding alone, which Adam makes as large as any other."""
    losses, weights = found
    return losses, {name: tensor for name, tensor in weights.items() if not name.endswith("k_lin.bias")}


def test_a_machine_dies_and_comes_back(
    machines: list[Machine], teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    script, folder, log = tmp_path / "slowed.py", tmp_path / "student", tmp_path / "log"
    script.write_text(SLOWED)
    # A step takes four blocks: two machines take a batch of two each, and one takes two batches.
    options = {"max_steps": 500, "num_train_epochs": 1, "save_steps": 5, "gradient_accumulation_steps": 1}
    command = [str(script), *job(teacher_without_dropout, corpus_folder, folder, **options)]
    first, second = machines
    agent, lost = first.start(log, *command), second.start(log, *command)
    wait_for_checkpoint(folder, 10, agent, log, PATIENCE)
    second.kill()
    killed_at = newest_checkpoint(folder)
    assert lost.wait(60) != 0
    wait_for_checkpoint(folder, killed_at + 10, agent, log, PATIENCE)
    back = second.start(log, *command)
    assert (agent.wait(PATIENCE), back.wait(60)) == (0, 0), log.read_text()

    said = log.read_text()
    assert "Traceback" not in said
    assert said.count("cannot reach another one") == 1
    changes = json.loads((folder / "results.json").read_text())["changed_on_resume"]
    assert [change["processes"] for change in changes] == [[2, 1], [1, 2]]
    assert all(a["step"] < b["step"] for a, b in itertools.pairwise(changes))
    alone = {"max_steps": 500, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = distill(
        distillation(teacher_without_dropout, corpus_folder, tmp_path / "alone", learning_rate=1e-3, **alone)
    )
    ours, theirs = (without_key_biases(learned(output)) for output in (folder, whole))
    assert_alike(ours, theirs)
