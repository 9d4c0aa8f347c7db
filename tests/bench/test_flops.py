"""FLOPs by formula are those that PyTorch counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from potstill.bench.flops import forward_flops, matrix_product_rate, step_flops
from potstill.bench.plain import PlainStep
from potstill.corpus.masking import masked_per_block
from potstill.objective import DistillationObjective, objective_from
from potstill.student import build_student, load_masked_lm

BLOCK_SIZE = 16
MASKED = masked_per_block(BLOCK_SIZE, 0.15)


@pytest.fixture
def step(make_teacher: Callable[..., Path]) -> PlainStep:
    """A step whose attention is made of matrix products that the counter knows on every device."""
    teacher = load_masked_lm(make_teacher())
    student = build_student(teacher).train()
    for model in (teacher, student):
        model.set_attn_implementation("eager")
    return PlainStep(student, teacher, DistillationObjective())


def counted(step: PlainStep, backward: bool) -> float:
    """FLOPs per token of three blocks."""
    ids = torch.arange(3 * BLOCK_SIZE).reshape(3, BLOCK_SIZE)
    positions = torch.tensor([[1, 5]] * 3)
    with FlopCounterMode(display=False) as counter:
        if backward:
            step(ids, positions, ids.gather(1, positions))["loss"].backward()
        else:
            with torch.no_grad():
                step.teacher(ids)
    return counter.get_total_flops() / ids.numel()


def test_a_forward_pass(step: PlainStep) -> None:
    assert forward_flops(step.teacher, BLOCK_SIZE) == counted(step, backward=False)


def test_a_step(step: PlainStep) -> None:
    flops = step_flops(step.student, step.teacher, step.objective, BLOCK_SIZE, masked_per_block(BLOCK_SIZE, 0.15))
    assert flops.step == counted(step, backward=True)
    assert flops.step == flops.teacher_forward + flops.student_forward + flops.student_backward


def test_only_what_the_losses_read_counts(step: PlainStep) -> None:
    def flops(**objective: float | str) -> tuple[float, float]:
        weights = {"alpha_ce": 0.0, "alpha_mlm": 0.0, "alpha_cos": 0.0} | objective
        counted = step_flops(step.student, step.teacher, DistillationObjective(**weights), BLOCK_SIZE, MASKED)
        return counted.teacher_forward, counted.student_forward

    def forward(share: float) -> tuple[float, float]:
        return forward_flops(step.teacher, BLOCK_SIZE, share), forward_flops(step.student, BLOCK_SIZE, share)

    masked = 2 / BLOCK_SIZE
    # Where nothing else is read, the last layer makes queries, and all that follows them, of the masked tokens alone.
    left_out = (1 - masked) * 2 * (2 * 32 * 32 + 2 * 32 * 64 + 2 * BLOCK_SIZE * 32)
    of_masked = tuple(whole - left_out for whole in forward(masked))
    assert flops(alpha_ce=1.0) == forward(1)
    assert flops(alpha_ce=1.0, alpha_mlm=1.0, soft_targets="masked") == of_masked
    assert flops(alpha_mlm=1.0) == (0, of_masked[1])
    assert flops(alpha_cos=1.0) == forward(0)
    assert flops(alpha_cos=1.0, hidden_cosine="masked") == tuple(whole - left_out for whole in forward(0))
    assert flops(alpha_mlm=1.0, alpha_cos=1.0) == (forward(0)[0], forward(masked)[1])
    assert flops(alpha_mlm=1.0, alpha_cos=1.0, soft_targets="masked", hidden_cosine="masked") == (
        forward(0)[0] - left_out,
        of_masked[1],
    )


@pytest.mark.parametrize(
    "losses",
    [
        {"soft_targets": {"tokens": "all", "divergence": "jensen_shannon"}, "logits_mse": 1, "hidden_cosine": 1},
        {"soft_targets": 1, "hidden_mse": {"layers": {0: 1, 1: 3}}},
        {"soft_targets": 1, "attention_relations": {"relation_heads": 4, "relations": ["query", "value"]}},
    ],
    ids=str,
)
def test_a_step_of_other_losses(losses: dict[str, Any], make_teacher: Callable[..., Path]) -> None:
    """The plain step computes logits at every position, so the losses here read them there too."""
    teacher = load_masked_lm(make_teacher())
    narrow = BertConfig(**(teacher.config.to_dict() | {"hidden_size": 24, "num_hidden_layers": 2}))
    student = BertForMaskedLM(narrow if "hidden_cosine" not in losses else teacher.config).train()
    for model in (teacher, student):
        model.set_attn_implementation("eager")
    step = PlainStep(student, teacher, objective_from(losses))
    # Queries, keys and values are computed once more: what an implementation does besides is not counted.
    again = 0.0
    if "attention_relations" in losses:
        forward, backward = 3, 2 * 2  # of the keys nothing is read, so they have no backward pass
        again = 2 * (forward * teacher.config.hidden_size**2 + (forward + backward) * student.config.hidden_size**2)
    flops = step_flops(student, teacher, step.objective, BLOCK_SIZE, masked_per_block(BLOCK_SIZE, 0.15))
    assert flops.step + again == counted(step, backward=True)


def test_layers_above_what_is_read_do_not_count(step: PlainStep) -> None:
    """By hand: a layer of H = 32 and F = 64 has 4 H² + 2 H F weights, and its attention 4 L H per token."""
    layer = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * BLOCK_SIZE * 32
    qkv, relation = 2 * 3 * 32 * 32, 2 * BLOCK_SIZE * 32

    def flops(**losses: Any) -> tuple[float, float]:
        counted = step_flops(step.student, step.teacher, objective_from(losses), BLOCK_SIZE, MASKED)
        return counted.teacher_forward, counted.student_forward

    assert flops(hidden_mse={"layers": {0: 2}}) == (3 * layer, layer)
    assert flops(hidden_mse={"layers": {1: -1}}) == (4 * layer, 2 * layer)
    relations = {"teacher_layer": 3, "student_layer": 1, "relations": ["key"]}
    assert flops(attention_relations=relations) == (3 * layer + qkv + relation, layer + qkv + relation)
    both = flops(attention_relations=relations, hidden_cosine=1)
    assert both == (4 * layer + relation, 2 * layer + relation)


def test_distilbert() -> None:
    with torch.device("meta"):
        teacher, student = BertForMaskedLM(BertConfig()), DistilBertForMaskedLM(DistilBertConfig())
    flops = step_flops(student, teacher, DistillationObjective(), 512, masked_per_block(512, 0.15))
    millions = [count / 1e6 for count in (flops.teacher_forward, flops.student_forward, flops.student_backward)]
    assert millions == pytest.approx([236.8, 142.4, 284.9], abs=0.1)
    assert flops.step / 1e6 == pytest.approx(664, abs=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_of_a_matrix_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("potstill.bench.flops", fromlist=["x"]).MATRIX_SIZE, "cpu", 64)
    assert matrix_product_rate(torch.device("cpu"), dtype, repetitions=2) > 1e6
