"""Muon: orthogonal updates against float64, which parameters get them, and that a run can be resumed and grown."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from runs import assert_same_tensors, distillation, pretraining, send_signal_in_step, tensors
from torch import Tensor, nn

from potstill import DistillationTrainer, PotstillError, build_student, pretrain
from potstill.cli import main
from potstill.student import load_masked_lm
from potstill.training.control import TrainingInterrupted
from potstill.training.muon import Muon, orthogonalised

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def naive(matrix: Tensor, gradients: list[Tensor], rate: float, decay: float) -> Tensor:
    """Muon in float64, with the exact iteration on singular values."""
    matrix, mean = matrix.double(), torch.zeros_like(matrix, dtype=torch.float64)
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient.double()
        ahead = 0.05 * gradient.double() + 0.95 * mean
        u, s, vh = torch.linalg.svd(ahead / ahead.norm(), full_matrices=False)
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        matrix = matrix * (1 - rate * decay) - rate * 0.2 * max(matrix.shape) ** 0.5 * (u * s) @ vh
    return matrix


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_those_of_float64(device: str) -> None:
    tolerance = 1e-5 if device == "cpu" else 2e-2
    shapes = [(24, 16), (16, 24), (24, 16), (16, 16)]
    matrices = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    vector = nn.Parameter(torch.randn(16, device=device))
    start, plain = [matrix.detach().clone() for matrix in matrices], nn.Parameter(vector.detach().clone())
    rate, decay = 0.03, 0.1
    groups = [
        {"params": [vector], "weight_decay": 0.0, "muon": False},
        {"params": matrices, "weight_decay": decay, "muon": True},
    ]
    muon, adamw = Muon(groups, lr=rate), torch.optim.AdamW([plain], lr=rate, weight_decay=0.0)
    gradients = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(3)]
    for of_step in gradients:
        for matrix, gradient in zip(matrices, of_step, strict=True):
            matrix.grad = gradient
        vector.grad = torch.randn_like(vector)
        plain.grad = vector.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(vector, plain)
    for number, matrix in enumerate(matrices):
        expected = naive(start[number], [of_step[number] for of_step in gradients], rate, decay)
        moved = expected - start[number].double()
        assert ((matrix.double() - expected).norm() / moved.norm()).item() < tolerance


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_singular_values_come_close_to_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape) * 1e-6
    found = orthogonalised(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ vh.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert ((values > 0.5) & (values < 1.3)).all()
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-4
    assert not orthogonalised(torch.zeros(1, 4, 4)).any()


def test_a_saved_state_continues() -> None:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

    def new(parameters: list[nn.Parameter]) -> Muon:
        groups = [{"params": [parameters[1]], "muon": False}, {"params": [parameters[0]], "muon": True}]
        return Muon(groups, lr=0.1)

    def step(optimizer: Muon, parameters: list[nn.Parameter], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    first = [matrix, vector]
    optimizer = new(first)
    step(optimizer, first, 1)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = new(second)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, first, 2)
    step(other, second, 2)
    for one, same in zip(first, second, strict=True):
        assert torch.equal(one, same)


def test_the_matrices_inside_layers_get_it(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    teacher = load_masked_lm(str(teacher_folder))
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", optimizer="muon", weight_decay=0.1)
    trainer = DistillationTrainer(build_student(teacher, layers="0,3"), corpus_folder, args, teacher)
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in trainer.step.named_parameters()}
    groups = [{names[id(one)] for one in group["params"]} for group in optimizer.param_groups]
    assert [(group["muon"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (False, 0.1),
        (False, 0.0),
        (True, 0.1),
    ]
    assert len(groups[2]) == 2 * 6
    assert all(".layer." in name and name.endswith("weight") for name in groups[2])
    assert any("word_embeddings" in name for name in groups[0])
    assert sum(map(len, groups)) == len(names)


def test_a_run_is_resumed_and_grown(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_restored: None
) -> None:
    growth = {"grow": "1,2,4", "grow_at": "0.25,0.5", "optimizer": "muon"}
    whole = tensors(pretrain(pretraining(corpus_folder, tmp_path / "whole", **growth)))
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 4)
        with pytest.raises(TrainingInterrupted):
            pretrain(pretraining(corpus_folder, folder, **growth))
    recipe = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder)]
    assert main(["pretrain", *recipe, "--resume_from_checkpoint", "true"]) == 0
    assert_same_tensors(tensors(folder), whole)


def test_another_optimiser_beside_it_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="--optim is 'sgd': it must be left out with --optimizer muon"):
        pretraining(corpus_folder, tmp_path, optimizer="muon", optim="sgd")
    with pytest.raises(PotstillError, match="--optimizer is 'lion': it must be 'adamw' or 'muon'"):
        pretraining(corpus_folder, tmp_path, optimizer="lion")
