"""Sharded runs: what they hold on each process, and what is refused. `test_fleet.py` compares what they learn."""

import json
import shutil
from pathlib import Path

import pytest
from fleet_samples import job, run
from runs import distillation, new_trainer
from safetensors.torch import load_file
from torch import nn

from potstill import PotstillError, distill
from potstill.training.checkpoints import SHARDED_OPTIMIZER, DamagedCheckpointError, verify, write_checksums
from potstill.training.sharding import WholeCopy, all_finite, call_sharded

HELD = """
import json, os, sys
import torch
from torch.distributed.tensor import DTensor
from potstill import DistillationTrainer
from potstill.cli import main

train = DistillationTrainer.train

def held(model):
    parameters = list(model.parameters())
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    own = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return {"sharded": len(sharded), "own": own, "all": sum(p.numel() for p in parameters)}

def train_and_look(self, **options):
    result = train(self, **options)
    layers = torch.nn.ModuleList([self.teacher.bert.encoder.layer])
    found = {"student": held(self.student), "teacher": held(self.teacher), "layers": held(layers)}
    with open(os.environ["NOTES"] + os.environ["RANK"], "w") as file:
        json.dump(found, file)
    return result

DistillationTrainer.train = train_and_look
sys.exit(main(["distill", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_each_process_holds_its_part_of_student_and_teacher(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    script, notes, folder = tmp_path / "held.py", tmp_path / "notes", tmp_path / "student"
    script.write_text(HELD)
    options = {"max_steps": 2, "fsdp": "true", "eval_strategy": "steps", "per_device_eval_batch_size": 3}
    finished = run(2, script, *job(teacher_without_dropout, corpus_folder, folder, **options), NOTES=notes)
    assert finished.returncode == 0, finished.stderr
    for rank in range(2):
        found = json.loads(notes.with_name(f"notes{rank}").read_text())
        assert found["student"]["own"] == pytest.approx(found["student"]["all"] / 2, rel=0.05)
        assert found["layers"]["own"] == pytest.approx(found["layers"]["all"] / 2, rel=0.05)
        whole = found["teacher"]["all"] - found["layers"]["all"]  # embeddings and head
        assert found["teacher"]["own"] == found["layers"]["own"] + whole
    results = json.loads((folder / "results.json").read_text())
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_on_start": True, "learning_rate": 1e-3}
    options |= {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 2}
    alone = distill(distillation(teacher_without_dropout, corpus_folder, tmp_path / "alone", **options))
    expected = json.loads((alone / "results.json").read_text())
    for when in ("initial", "final"):
        assert results["held_out"][when] == pytest.approx(expected["held_out"][when], rel=1e-3)
    assert results["parameters"] == expected["parameters"]
    assert load_file(folder / "model.safetensors").keys() == load_file(alone / "model.safetensors").keys()

    # A shard that is damaged or lost is found, and another way of training is refused by name.
    checkpoint = folder / "checkpoint-2"
    verify(checkpoint)
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    shard = copy / SHARDED_OPTIMIZER / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"__0_0\.distcp has changed"):
        verify(copy)
    (copy / SHARDED_OPTIMIZER / ".metadata").unlink()
    write_checksums(copy)
    with pytest.raises(DamagedCheckpointError, match=r"it has no optimizer_0/\.metadata"):
        verify(copy)
    begun = {"max_steps": 4, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 2}
    begun |= {"resume_from_checkpoint": str(checkpoint), "learning_rate": 1e-3}
    with pytest.raises(PotstillError, match="--fsdp was True and is None"):
        distill(distillation(teacher_without_dropout, corpus_folder, tmp_path / "other", **begun))


def test_without_a_launcher_sharding_is_refused(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", fsdp="true")
    with pytest.raises(PotstillError, match=r"--fsdp shares the models among the processes of a launcher.*torchrun"):
        new_trainer(args)


def test_false_means_no_sharding(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    assert not distillation(teacher_folder, corpus_folder, tmp_path, fsdp="false").fsdp


def test_a_module_that_is_not_sharded_is_left_as_it_is() -> None:
    module = nn.Linear(2, 2)
    assert call_sharded(module, lambda: 5) == 5
    assert all_finite(module)
    module.weight.data[0, 0] = float("inf")
    assert not all_finite(module)
    assert WholeCopy(module, keep=False).model is None  # type: ignore[arg-type]
