"""`--optim muon`: Muon for the matrices of a model's layers, and AdamW for its other weights."""

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, distillation, new_trainer, pretraining, send_signal_in_step, tensors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from potstill import DistillationArguments, PotstillError, distill, pretrain
from potstill.cli import main
from potstill.training import muon
from potstill.training.control import TrainingInterrupted
from potstill.training.muon import MuonAdamW, StackedMuon, grouped_names, muon_names, orthogonalised

RATE, DECAY, BETAS, EPSILON = 3e-3, 0.1, (0.9, 0.98), 1e-6


def muon_in_float64(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """Jordan's optimiser with Nesterov momentum and five iterations, scaled as by Liu et al."""
    weight, momentum = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient.double()
        x = 0.05 * gradient.double() + 0.95 * momentum
        transposed = x.shape[0] > x.shape[1]
        x = x.T if transposed else x
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        x = x.T if transposed else x
        weight = weight * (1 - RATE * DECAY) - RATE * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


def adamw_in_float64(weight: Tensor, gradients: list[Tensor], decay: float) -> Tensor:
    weight = weight.double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient.double()
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        step_size = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
        weight = weight * (1 - RATE * decay) - RATE * step_size
    return weight


def new_optimizer(parameters: list[nn.Parameter]) -> MuonAdamW:
    wide, tall, table, bias = parameters
    return MuonAdamW([wide, tall], [table], [bias], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)


def new_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in ((6, 10), (12, 5), (7, 4), (9,))]


@pytest.mark.parametrize(("amx", "error"), [(True, 0.03), (False, 1e-3)])
def test_steps_are_those_of_both_optimisers_in_float64(
    monkeypatch: pytest.MonkeyPatch, amx: bool, error: float
) -> None:
    """With bfloat16, which keeps three digits, and with float32."""
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda: amx)
    parameters = new_parameters()
    starts = [parameter.detach().clone() for parameter in parameters]
    gradients = [[torch.randn_like(parameter) for parameter in parameters] for _ in range(4)]
    optimizer = new_optimizer(parameters)
    for found in gradients:
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for place, (parameter, start) in enumerate(zip(parameters, starts, strict=True)):
        of_parameter = [found[place] for found in gradients]
        if place < 2:
            expected = muon_in_float64(start, of_parameter)
            moved = (expected - start.double()).norm()
            assert (parameter.double() - expected).norm() < error * moved
        else:
            expected = adamw_in_float64(start, of_parameter, DECAY if place == 2 else 0.0)
            torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("largest", [2**26, 100])
def test_stacked_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    monkeypatch.setattr(muon, "LARGEST_STACK", largest)
    shapes = [(6, 10), (12, 5), (6, 10), (8, 8), (6, 10)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options: dict[str, Any] = {"lr": RATE, "weight_decay": DECAY, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [StackedMuon(ours, **options), torch.optim.Muon(theirs, **options)]
    starts = [parameter.detach().clone() for parameter in ours]
    for step in range(3):
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            gradient = None if (step, place) == (1, 2) else torch.randn(shapes[place])
            for parameter in pair:
                parameter.grad = None if gradient is None else gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other, start in zip(ours, theirs, starts, strict=True):
        assert (own - other).norm() < 0.03 * (other - start).norm()  # both round to bfloat16
    states = [optimizer.state_dict() for optimizer in optimizers]
    for own, other in zip(states[0]["state"].values(), states[1]["state"].values(), strict=True):
        torch.testing.assert_close(own["momentum_buffer"], other["momentum_buffer"])
    assert states[0]["param_groups"] == states[1]["param_groups"]


def test_a_skipped_step_changes_nothing() -> None:
    """With `--on_nan skip` a bad step leaves no gradients."""
    parameters = new_parameters()
    optimizer = new_optimizer(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = copy.deepcopy([parameters, optimizer.state_dict()["state"]])
    optimizer.zero_grad()
    optimizer.step()
    torch.testing.assert_close([parameters, optimizer.state_dict()["state"]], before, rtol=0, atol=0)


def test_singular_values_come_near_to_one() -> None:
    matrices = torch.randn(3, 20, 32)
    for stack in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(stack, (3.4445, -4.7750, 2.0315), 5, torch.bfloat16).float())
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_state_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    parameters = new_parameters()
    optimizer = new_optimizer(parameters)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(optimizer: Any, schedule: Any, parameters: list[nn.Parameter], seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        schedule.step()

    step(optimizer, schedule, parameters, 1)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    again = new_optimizer(copies)
    later = torch.optim.lr_scheduler.LambdaLR(again, lambda step: 1 / (1 + step))
    later.load_state_dict(schedule.state_dict())
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    step(optimizer, schedule, parameters, 2)
    step(again, later, copies, 2)
    for parameter, copied in zip(parameters, copies, strict=True):
        assert torch.equal(parameter, copied)


@pytest.mark.parametrize(
    ("model_type", "causal"), [("bert", False), ("roberta", False), ("modernbert", False), ("gpt2", True)]
)
def test_only_matrices_of_layers_are_for_muon(model_type: str, causal: bool) -> None:
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2} if causal else {"hidden_size": 8, "num_hidden_layers": 2}
    config = AutoConfig.for_model(
        model_type, vocab_size=30, pad_token_id=0, num_attention_heads=2, intermediate_size=16, **sizes
    )
    with torch.device("meta"):
        model = (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config)
    names = muon_names(model)
    assert any("attn" in name or "attention" in name for name in names)
    assert any("mlp" in name or "intermediate" in name for name in names)
    for name, parameter in model.named_parameters():
        if name in names:
            assert parameter.ndim == 2, name
            assert 30 not in parameter.shape, name  # the vocabulary
        else:
            assert parameter.ndim == 1 or "embed" in name or "wte" in name or "wpe" in name, name


def test_groups_hold_each_name_once_in_order() -> None:
    assert grouped_names(["a", "b", "c", "d"], {"c", "a"}, {"a", "d"}) == [["a", "c"], ["d"], ["b"]]


def test_a_resumed_run_is_bit_identical(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
) -> None:
    options: dict[str, Any] = {"optim": "muon", "weight_decay": 0.1, "max_steps": 6}
    distill(distillation(teacher_folder, corpus_folder, tmp_path / "whole", **options))
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 3)
        with pytest.raises(TrainingInterrupted) as interruption:
            distill(distillation(teacher_folder, corpus_folder, folder, **options))
    assert interruption.value.signal == signal.SIGTERM
    assert "optim: muon" in (folder / "recipe.yaml").read_text()
    recipe = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder)]
    assert main(["distill", *recipe, "--resume_from_checkpoint", "true"]) == 0
    assert_same_tensors(tensors(folder), tensors(tmp_path / "whole"))
    changed = distillation(teacher_folder, corpus_folder, folder, **(options | {"optim": "adamw_torch"}))
    changed.resume_from_checkpoint, changed.overwrite_output_dir = str(interruption.value.checkpoint), True
    with pytest.raises(PotstillError, match="optim"):  # the state belongs to another optimiser
        distill(changed)


def test_a_growing_model_keeps_its_momentum(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_restored: None
) -> None:
    options: dict[str, Any] = {"optim": "muon", "grow": "1,2,4", "grow_at": "0.25,0.5"}
    pretrain(pretraining(corpus_folder, tmp_path / "whole", **options))
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 3)  # the step at which the model grows
        with pytest.raises(TrainingInterrupted):
            pretrain(pretraining(corpus_folder, folder, **options))
    recipe = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder)]
    assert main(["pretrain", *recipe, "--resume_from_checkpoint", "true"]) == 0
    assert_same_tensors(tensors(folder), tensors(tmp_path / "whole"))


def test_the_trainer_gives_muon_the_matrices_alone(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path, optim="muon", weight_decay=0.1))
    optimizer = trainer.create_optimizer()
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in optimizer.param_groups]
    assert sum(sizes) == sum(parameter.numel() for parameter in trainer.student.parameters())
    assert sizes[0] == sum(trainer.student.get_parameter(name).numel() for name in muon_names(trainer.student))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optim": "muon", "fsdp": True}, "fsdp"), ({"optim": "newton"}, "--optim is 'newton': it must be muon or")],
)
def test_what_does_not_go_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=message):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **options)
