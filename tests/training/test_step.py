"""The step under autocast, compiled, and with activations recomputed, against the step in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import distillation, new_trainer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill import build_student
from potstill.objective import DistillationObjective
from potstill.training.step import DistillationStep

VOCAB, BLOCKS, LENGTH, MASKED = 80, 3, 12, 2


def new_pair(**options: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student in training, without dropout, and its teacher."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = BertForMaskedLM(BertConfig(vocab_size=VOCAB, **(sizes | drop | options)))
    student = build_student(teacher).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return student, teacher


def new_batch() -> tuple[Tensor, Tensor, Tensor]:
    positions = torch.stack([torch.randperm(LENGTH)[:MASKED] for _ in range(BLOCKS)])
    return torch.randint(VOCAB, (BLOCKS, LENGTH)), positions, torch.randint(VOCAB, (BLOCKS, MASKED))


def run(step: DistillationStep, batch: tuple[Tensor, Tensor, Tensor], bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    step.student.zero_grad()
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bf16):
        losses = step(*batch)
    losses["loss"].backward()
    return losses["loss"].detach(), {name: parameter.grad for name, parameter in step.student.named_parameters()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    found_all, expected_all = (torch.cat([grads[name].flatten() for name in expected]) for grads in (found, expected))
    return ((found_all - expected_all).norm() / expected_all.norm()).item()


@pytest.fixture(params=[(), ("cpu",)], ids=["autocast", "copies"])
def sixteen_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student computes under autocast, as it does on a CPU, or on copies, as it does on a GPU."""
    monkeypatch.setattr("potstill.training.step.EXACT_SUMS", request.param)


@pytest.mark.usefixtures("sixteen_bits")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", [{}, {"soft_targets": "masked"}, {"alpha_ce": 0, "alpha_cos": 0}], ids=str)
def test_sixteen_bits_change_losses_and_gradients_by_their_rounding(options: dict[str, object], tied: bool) -> None:
    student, teacher = new_pair(tie_word_embeddings=tied)
    step, batch = DistillationStep(student, teacher, DistillationObjective(**options)), new_batch()
    loss, gradients = run(step, batch, bf16=False)
    rough_loss, rough_gradients = run(step, batch, bf16=True)
    assert rough_loss.item() == pytest.approx(loss.item(), rel=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in rough_gradients.values())
    assert 0 < distance(rough_gradients, gradients) < 0.05


def test_the_user_s_models_stay_in_float32() -> None:
    student, teacher = new_pair()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run(DistillationStep(student, teacher, DistillationObjective()), new_batch(), bf16=True)
    assert student.dtype == teacher.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_no_gradient_is_lost_in_long_sums(device: str) -> None:
    student, teacher = new_pair(max_position_embeddings=256)
    step = DistillationStep(student.to(device), teacher.to(device), DistillationObjective())
    ids = torch.randint(VOCAB, (32, 256), device=device)
    ids[:, ::2] = 7  # one row of the embeddings gets thousands of gradients
    batch = (ids, torch.arange(0, 256, 2, device=device).expand(32, -1), ids[:, 1::2])
    _, expected = run(step, batch, bf16=False)
    _, found = run(step, batch, bf16=True)
    for name, gradient in expected.items():
        # A bias of the keys moves all scores of a query alike: its gradient is 0 but for rounding. Those of the head's
        # LayerNorm a CPU sums in 16 bits under plain autocast too.
        if "k_lin.bias" not in name and not (device == "cpu" and "vocab_layer_norm" in name):
            assert ((found[name] - gradient).norm() / gradient.norm()).item() < 0.02, name


def test_parameters_replaced_by_others_are_used_after_a_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.training.step.EXACT_SUMS", ("cpu",))
    student, teacher = new_pair()
    step, batch = DistillationStep(student, teacher, DistillationObjective()), new_batch()
    before, _ = run(step, batch, bf16=True)
    student.distilbert.transformer.layer[0].ffn.lin1 = torch.nn.Linear(32, 64)
    step.refresh()
    after, gradients = run(step, batch, bf16=True)
    assert after != before
    assert all(gradient is not None for gradient in gradients.values())


@pytest.mark.usefixtures("sixteen_bits")
def test_recomputed_activations_give_the_same_gradients_under_autocast() -> None:
    student, teacher = new_pair()
    step, batch = DistillationStep(student, teacher, DistillationObjective()), new_batch()
    loss, gradients = run(step, batch, bf16=True)
    step.gradient_checkpointing_enable()
    again, recomputed = run(step, batch, bf16=True)
    assert again.item() == pytest.approx(loss.item(), rel=0.02)
    assert distance(recomputed, gradients) < 0.05


@pytest.mark.usefixtures("sixteen_bits")
@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_layers_change_nothing(bf16: bool) -> None:
    student, teacher = new_pair()
    step, batch = DistillationStep(student, teacher, DistillationObjective()), new_batch()
    loss, gradients = run(step, batch, bf16)
    names = set(student.state_dict())
    step.compile_parts(backend="aot_eager")
    compiled_loss, compiled = run(step, batch, bf16)
    assert set(student.state_dict()) == names
    assert compiled_loss.item() == pytest.approx(loss.item(), rel=1e-2 if bf16 else 1e-5)
    assert distance(compiled, gradients) < (0.03 if bf16 else 1e-5)


def test_layers_that_are_alike_are_compiled_once() -> None:
    student, teacher = new_pair()
    seen: list[torch.fx.GraphModule] = []

    def noting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    torch._dynamo.reset()
    step = DistillationStep(student, teacher, DistillationObjective())
    step.compile_parts(backend=noting)
    for _ in range(2):
        run(step, new_batch(), bf16=True)
    assert len(seen) == 3  # a layer of each model, and the cosine


def test_a_trainer_compiles_and_evaluates(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 2, "eval_strategy": "steps"}
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", eval_steps=1, **options))
    trainer.train()
    assert trainer.args.torch_compile_backend == "aot_eager"
    assert [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.save_model()
    assert (tmp_path / "student" / "model.safetensors").is_file()
