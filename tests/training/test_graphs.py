"""Steps that are recorded as CUDA graphs, against the same steps run as they are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from runs import assert_alike, distillation, learned, new_trainer
from test_distributed import TORCHRUN, launch, options
from test_step import distance, new_batch, new_pair
from torch import Tensor, nn

from potstill.objective import DistillationObjective
from potstill.training.graphs import Graphed, _aliases
from potstill.training.step import DistillationStep


def double(values: Tensor) -> dict[str, Tensor]:
    return {"doubled": 2 * values}


def test_without_a_gpu_the_function_is_called_as_it_is() -> None:
    layer, batch = nn.Linear(3, 1), torch.randn(4, 3)
    graphed = Graphed(lambda batch: {"loss": layer(batch).mean()}, layer)
    for _ in range(3):
        graphed(batch)["loss"].backward()
    assert not graphed.graphs
    torch.testing.assert_close(layer.weight.grad, 3 * batch.mean(0, keepdim=True))


def test_aliases_are_other_parameters_in_the_same_memory() -> None:
    shared = nn.Linear(3, 3)
    module = nn.Sequential(shared, nn.Linear(3, 3), nn.Linear(3, 1))
    module[1].weight = shared.weight
    module[2].bias.requires_grad_(False)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batch = torch.randn(4, 3)
    expected = torch.autograd.grad(module(batch).sum(), parameters)
    with _aliases(module, parameters) as leaves:
        assert module[0].weight is module[1].weight  # tied as before
        assert not {id(leaf) for leaf in leaves} & {id(parameter) for parameter in parameters}
        assert [leaf.data_ptr() for leaf in leaves] == [parameter.data_ptr() for parameter in parameters]
        for found, gradient in zip(torch.autograd.grad(module(batch).sum(), leaves), expected, strict=True):
            assert torch.equal(found, gradient)
    assert [id(parameter) for parameter in module.parameters() if parameter.requires_grad] == list(map(id, parameters))
    assert module[0].weight is module[1].weight


def test_gradients_of_replayed_steps_are_averaged_over_processes() -> None:
    seed = random.randrange(2**31)
    finished = launch(TORCHRUN, Path(__file__).with_name("replayed_fleet.py"), seed)
    assert finished.returncode == 0, f"seed {seed}: {finished.stderr}"
    assert finished.stdout.count("alike") == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_replay_what_they_would_compute(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    found = []
    for recorded in (False, True):
        job = options(
            teacher_without_dropout, corpus_folder, tmp_path / str(recorded), use_cpu=False, cuda_graphs=recorded
        )
        finished = launch(TORCHRUN, "-m", "potstill", "distill", *job)
        assert finished.returncode == 0, finished.stderr
        assert "cannot be recorded" not in finished.stderr
        found.append(learned(tmp_path / str(recorded)))
    assert_alike(*found)


@pytest.mark.gpu
def test_a_function_is_recorded_for_each_shape() -> None:
    graphed = Graphed(double)
    for length in (3, 5, 3, 5, 3, 5, 3):
        values = torch.randn(length, device="cuda")
        assert torch.equal(graphed(values)["doubled"], 2 * values)
    assert len(graphed.graphs) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_replayed_steps_have_the_losses_and_gradients_of_steps_as_they_are(bf16: bool, compiled: bool) -> None:
    student, teacher = (model.cuda() for model in new_pair())
    plain = DistillationStep(student, teacher, DistillationObjective())
    recorded = DistillationStep(student, teacher, DistillationObjective())
    if compiled:
        recorded.compile_parts(backend="inductor")
    recorded.record_graphs()
    for _ in range(4):
        batch = tuple(tensor.cuda() for tensor in new_batch())
        found, expected = [], []
        for step, results in ((plain._losses, expected), (recorded, found)):
            student.zero_grad()
            for scale in (1.0, 0.5):  # two micro-batches add up, the second scaled
                with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    losses = step(*batch)
                (losses["loss"] * scale).backward()
            results += [losses["loss"].item(), {n: p.grad.clone() for n, p in student.named_parameters()}]
            del losses  # and with it what autograd built on another stream than the one that is recorded
        assert found[0] == pytest.approx(expected[0], rel=1e-2 if bf16 else 1e-5)
        assert distance(found[1], expected[1]) < (0.05 if bf16 else 1e-4)
        with torch.no_grad():  # the optimiser writes to the parameters where they lie
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    assert len(recorded._graphed.graphs) == 1  # type: ignore[union-attr]


@pytest.mark.gpu
def test_dropout_draws_anew_at_each_replay_and_repeats_with_its_seed() -> None:
    graphed = Graphed(lambda values: {"kept": nn.functional.dropout(values, 0.5)})
    values = torch.ones(1000, device="cuda")
    for _ in range(2):
        graphed(values)
    torch.manual_seed(3)
    first, second = graphed(values)["kept"], graphed(values)["kept"]
    torch.manual_seed(3)
    again = graphed(values)["kept"]
    torch.manual_seed(3)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(first, nn.functional.dropout(values, 0.5))


@pytest.mark.gpu
def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    layer = nn.Linear(3, 1).cuda()

    def waits(batch: Tensor) -> dict[str, Tensor]:
        return {"loss": layer(batch).mean() * batch.sum().item()}

    graphed, batch = Graphed(waits, layer), torch.randn(4, 3, device="cuda")
    graphed(batch)
    with pytest.warns(UserWarning, match="cannot be recorded"):
        losses = graphed(batch)
    assert losses["loss"].item() == pytest.approx((layer(batch).mean() * batch.sum()).item())
    graphed(batch)["loss"].backward()
    assert layer.weight.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_training_has_the_losses_of_one_that_is_not_recorded(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path, accumulated: int
) -> None:
    losses = []
    for recorded in (False, True):
        options = {"use_cpu": False, "cuda_graphs": recorded, "gradient_accumulation_steps": accumulated}
        trainer = new_trainer(distillation(teacher_without_dropout, corpus_folder, tmp_path / str(recorded), **options))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert trainer.step._graphed.graphs
