"""How a step's blocks are cut into micro-batches, or over processes, does not change what is learned."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distillation, tensors
from safetensors.torch import load_file
from torch import Tensor

from potstill import distill

LOSSES = ("loss", "loss_ce", "loss_mlm", "loss_cos")


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    """Without dropout, whose random numbers depend on the shape of a micro-batch."""
    return make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def run(teacher: Path, corpus: Path, folder: Path, **options: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Two epochs of which each leaves out six blocks; the losses of every step, and what was learned."""
    distill(distillation(teacher, corpus, folder, num_train_epochs=2, learning_rate=1e-3, **options))
    history = json.loads((folder / "results.json").read_text())["log_history"]
    return [{name: entry[name] for name in LOSSES} for entry in history if "loss" in entry], tensors(folder)


@pytest.fixture(scope="module")
def whole(
    teacher: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """A run whose steps are one batch of eight blocks each."""
    folder = tmp_path_factory.mktemp("whole") / "student"
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    losses, learned = run(teacher, corpus_folder, folder, **sizes)
    assert len(losses) == 10
    assert all(step[name] > 0 for step in losses for name in LOSSES)
    for step in losses:  # DistilBERT's weights
        assert step["loss"] == pytest.approx(5 * step["loss_ce"] + 2 * step["loss_mlm"] + step["loss_cos"], rel=1e-5)
    return losses, learned


def assert_alike(
    ours: tuple[list[dict[str, float]], dict[str, Tensor]], theirs: tuple[list[dict[str, float]], dict[str, Tensor]]
) -> None:
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    for name in theirs[1]:
        torch.testing.assert_close(ours[1][name], theirs[1][name], atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize(("micro_batch", "accumulated"), [(4, 2), (2, 4), (1, 8)])
def test_micro_batches(
    whole: tuple[list[dict[str, float]], dict[str, Tensor]],
    teacher: Path,
    corpus_folder: Path,
    tmp_path: Path,
    micro_batch: int,
    accumulated: int,
) -> None:
    sizes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulated}
    assert_alike(run(teacher, corpus_folder, tmp_path / "student", **sizes), whole)


DISTRIBUTED_RUN = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
from runs import distillation, new_trainer

teacher, corpus, out = sys.argv[2:]
torch.set_num_threads(1)
sizes = {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "save_steps": 7}
sizes |= {"gradient_accumulation_steps": 2, "ddp_backend": "gloo", "eval_strategy": "steps", "eval_steps": 10}

def train(name, resume=None):
    trainer = new_trainer(distillation(teacher, corpus, f"{out}/{name}", **sizes))
    assert trainer.args.world_size == 2
    trainer.train(resume_from_checkpoint=resume)
    wrapped = trainer.model_wrapped
    assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in trainer.student.parameters()}
    if trainer.args.process_index == 0:
        save_file({k: v.clone() for k, v in trainer.student.state_dict().items()}, f"{out}/{name}.safetensors")
        Path(f"{out}/{name}.json").write_text(json.dumps(trainer.state.log_history))

train("whole")
train("resumed", f"{out}/whole/checkpoint-7")
torch.distributed.destroy_process_group()
"""


def test_two_processes_and_resuming_them(
    whole: tuple[list[dict[str, float]], dict[str, Tensor]], teacher: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "distributed_run.py"
    script.write_text(DISTRIBUTED_RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += [
        "--standalone",
        str(script),
        str(Path(__file__).parent),
        str(teacher),
        str(corpus_folder),
        str(tmp_path),
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr

    history = json.loads((tmp_path / "whole.json").read_text())
    losses = [{name: entry[name] for name in LOSSES} for entry in history if "loss" in entry]
    learned, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert_alike((losses, {name: learned[name] for name in whole[1]}), whole)

    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["checkpoint-10", "checkpoint-7"]
    assert [name for name in learned if not torch.equal(learned[name], resumed[name])] == []
    after = json.loads((tmp_path / "resumed.json").read_text())
    held_out = ("eval_loss", "eval_kl", "eval_agreement", "eval_cosine", "eval_teacher_loss")
    assert [after[-2][name] for name in held_out] == [history[-2][name] for name in held_out]
