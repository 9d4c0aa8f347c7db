"""The step under autocast, compiled, and with activations recomputed, against the step in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distillation, new_trainer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, ElectraConfig, ElectraForMaskedLM, PreTrainedModel

from potstill import build_student
from potstill.objective import DistillationObjective, Encoded, Objective, objective_from
from potstill.training.step import DistillationStep

VOCAB, BLOCKS, LENGTH, MASKED = 80, 3, 12, 2


def new_pair(**options: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student in training, without dropout, and its teacher."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = BertForMaskedLM(BertConfig(vocab_size=VOCAB, **(sizes | drop | options)))
    return new_student(teacher), teacher


def new_student(teacher: PreTrainedModel) -> PreTrainedModel:
    student = build_student(teacher).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return student


# Together they run every term, every divergence, and layers in the middle of both models.
LOSSES: list[dict[str, Any]] = [
    {
        "soft_targets": {"divergence": "reverse_kl", "tokens": "masked"},
        "logits_mse": 1,
        "hidden_mse": {"layers": {0: 1, 1: 3}},
    },
    {
        "masked_lm": 1,
        "soft_targets": {"divergence": "jensen_shannon"},
        "attention_relations": {"weight": 3, "teacher_layer": 2, "student_layer": 0, "relation_heads": 8},
        "hidden_cosine": 1,
    },
    {"attention_relations": {"relations": ["value"]}, "hidden_mse": 1},
]


def new_narrow_pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student of another width than its teacher's, with other heads."""
    _, teacher = new_pair()
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(vocab_size=VOCAB, **sizes, **drop)).train(), teacher


def new_step(losses: dict[str, Any], narrow: bool) -> DistillationStep:
    if narrow:
        losses = {name: options for name, options in losses.items() if name != "hidden_cosine"}
    student, teacher = new_narrow_pair() if narrow else new_pair()
    return DistillationStep(student, teacher, objective_from(losses))


def new_batch() -> tuple[Tensor, Tensor, Tensor]:
    positions = torch.stack([torch.randperm(LENGTH)[:MASKED] for _ in range(BLOCKS)])
    return torch.randint(VOCAB, (BLOCKS, LENGTH)), positions, torch.randint(VOCAB, (BLOCKS, MASKED))


def run(step: DistillationStep, batch: tuple[Tensor, Tensor, Tensor], bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    step.zero_grad()
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bf16):
        losses = step(*batch)
    losses["loss"].backward()
    gradients = {name.removeprefix("student."): parameter.grad for name, parameter in step.named_parameters()}
    return losses["loss"].detach(), gradients


def distance(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> float:
    """Relative; what gets no gradient must get none in both."""
    names = [name for name, gradient in expected.items() if gradient is not None]
    assert names == [name for name in expected if found[name] is not None]
    found_all, expected_all = (torch.cat([grads[name].flatten() for name in names]) for grads in (found, expected))
    return ((found_all - expected_all).norm() / expected_all.norm()).item()


@pytest.fixture(params=[(), ("cpu",)], ids=["autocast", "copies"])
def sixteen_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student computes under autocast, as it does on a CPU, or on copies, as it does on a GPU."""
    monkeypatch.setattr("potstill.training.objective_step.FLOAT32_SUMS", request.param)


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


@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_no_gradient_is_lost_in_long_sums(device: str, recomputed: bool, family: str) -> None:
    student, teacher = new_pair(max_position_embeddings=256)
    if family == "electra":  # its embeddings are projected, so its first layer reads 16 bits
        sizes = {"embedding_size": 16, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        teacher = ElectraForMaskedLM(ElectraConfig(vocab_size=VOCAB, num_hidden_layers=4, **sizes, **drop))
        student = new_student(teacher)
    step = DistillationStep(student.to(device), teacher.to(device), DistillationObjective())
    ids = torch.randint(VOCAB, (32, 256), device=device)
    ids[:, ::2] = 7  # one row of the embeddings gets thousands of gradients
    batch = (ids, torch.arange(0, 256, 2, device=device).expand(32, -1), ids[:, 1::2])
    _, expected = run(step, batch, bf16=False)
    if recomputed:
        step.gradient_checkpointing_enable()
    _, found = run(step, batch, bf16=True)
    for name, gradient in expected.items():
        # The bias of the keys moves all scores of a query alike: its gradient is 0 but for rounding.
        if gradient is not None and "k_lin.bias" not in name and "key.bias" not in name:
            assert ((found[name] - gradient).norm() / gradient.norm()).item() < 0.02, name


def test_parameters_replaced_by_others_are_used_after_a_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.training.objective_step.FLOAT32_SUMS", ("cpu",))
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


@pytest.mark.parametrize(
    ("losses", "narrow"),
    [
        pytest.param(LOSSES[0], False, id="every token"),
        pytest.param(LOSSES[1], True, id="masked LM, another width"),
        pytest.param(LOSSES[2], True, id="no logits, another width"),
        # The long suite: each set of losses and each width is above.
        pytest.param(LOSSES[0], True, id="every token, another width", marks=pytest.mark.slow),
        pytest.param(LOSSES[1], False, id="masked LM", marks=pytest.mark.slow),
        pytest.param(LOSSES[2], False, id="no logits", marks=pytest.mark.slow),
    ],
)
def test_every_term_in_every_way_of_running_a_step(
    losses: dict[str, Any], narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits, with activations recomputed and compiled, against float32 as it is."""
    monkeypatch.setattr("potstill.training.objective_step.FLOAT32_SUMS", ("cpu",))  # 16 bits on copies, as on a GPU
    step, batch = new_step(losses, narrow), new_batch()
    loss, gradients = run(step, batch, bf16=False)
    assert any(name.startswith("objective_modules.") for name in gradients) == (narrow and "hidden_mse" in losses)
    rough_loss, rough = run(step, batch, bf16=True)
    assert rough_loss.item() == pytest.approx(loss.item(), rel=0.05)
    assert 0 < distance(rough, gradients) < 0.1
    step.gradient_checkpointing_enable()
    again, recomputed = run(step, batch, bf16=False)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert distance(recomputed, gradients) < 1e-5
    rough_loss, rough = run(step, batch, bf16=True)  # under autocast
    assert rough_loss.item() == pytest.approx(loss.item(), rel=0.05)
    assert distance(rough, gradients) < 0.1
    step.student.gradient_checkpointing_disable()
    step.compile_parts(backend="aot_eager")
    compiled_loss, compiled = run(step, batch, bf16=False)
    assert compiled_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert distance(compiled, gradients) < 1e-4
    compiled_loss, compiled = run(step, batch, bf16=True)
    assert compiled_loss.item() == pytest.approx(loss.item(), rel=0.05)
    assert distance(compiled, gradients) < 0.1


# Compiling takes almost all of the time of this test, so only one case is compiled for both types.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("losses", "narrow", "types"),
    [
        pytest.param(LOSSES[1], False, (False, True), id="every token"),
        pytest.param(LOSSES[1], True, (True,), id="every token, another width"),
        pytest.param(LOSSES[0], False, (False,), id="masked tokens"),
        pytest.param(LOSSES[2], True, (False,), id="no logits, another width"),
    ],
)
def test_every_term_on_a_gpu_recorded_and_compiled(losses: dict[str, Any], narrow: bool, types: tuple[bool]) -> None:
    step = new_step(losses, narrow).cuda()
    assert step.teacher is not None
    step.teacher.cuda()
    batch = tuple(tensor.cuda() for tensor in new_batch())
    loss, gradients = run(step, batch, bf16=False)
    gradients = {name: None if gradient is None else gradient.clone() for name, gradient in gradients.items()}
    rough_loss, rough = run(step, batch, bf16=True)
    assert rough_loss.item() == pytest.approx(loss.item(), rel=0.05)
    assert distance(rough, gradients) < 0.1
    del rough
    step.compile_parts(backend="inductor")
    step.record_graphs()
    for bf16 in types:
        for _ in range(3):
            found, recorded = run(step, batch, bf16)
        assert found.item() == pytest.approx(loss.item(), rel=0.05 if bf16 else 1e-4)
        assert distance(recorded, gradients) < (0.1 if bf16 else 1e-3)
    assert len(step._graphed.graphs) == len(types)  # type: ignore[union-attr]


def test_nothing_is_kept_that_no_term_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = new_pair()
    losses = {"masked_lm": 1, "hidden_mse": {"weight": 0, "layers": {0: 0}}, "hidden_cosine": 0}
    step = DistillationStep(student, teacher, objective_from(losses | {"attention_relations": {"weight": 0}}))
    seen: list[Encoded] = []
    call = Objective.__call__

    def noting(self: Objective, student: Encoded, teachers: list[Encoded], *rest: Any) -> dict[str, Tensor]:
        assert teachers == []
        seen.append(student)
        return call(self, student, teachers, *rest)

    monkeypatch.setattr(Objective, "__call__", noting)
    teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    teacher.bert.embeddings.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    run(step, new_batch(), bf16=False)
    assert [encoded.hidden.keys() for encoded in seen] == [{-1}]
    assert seen[0].attention == {}
    assert len(list(step.parameters())) == len(list(student.parameters()))


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


def test_terms_are_compiled_once() -> None:
    count = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal count
        count += 1
        return graph

    torch._dynamo.reset()
    step = new_step({"hidden_mse": {"layers": {0: 1, 1: 3}}, "attention_relations": {"relation_heads": 4}}, narrow=True)
    step._compiled_values = step.objective.compiled(backend=counting)
    for _ in range(3):
        run(step, new_batch(), bf16=True)
    assert count == 2


def test_a_trainer_compiles_and_evaluates(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 2, "eval_strategy": "steps"}
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", eval_steps=1, **options))
    trainer.train()
    assert trainer.args.torch_compile_backend == "aot_eager"
    assert [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.save_model()
    assert (tmp_path / "student" / "model.safetensors").is_file()
