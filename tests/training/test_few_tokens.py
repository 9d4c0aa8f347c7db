"""A step whose losses read few tokens: its last layers run at these alone, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill import build_student
from potstill.objective import objective_from
from potstill.student import LastLayer
from potstill.training.step import DistillationStep

VOCAB, BLOCKS, LENGTH, MASKED, SAMPLED = 80, 3, 12, 2, 3
AT_MASKED = {"soft_targets": {"weight": 5, "tokens": "masked"}, "masked_lm": 2}
AT_SAMPLED = {"soft_targets": {"weight": 5, "tokens": "sampled", "share": 0.3}, "masked_lm": 2}
COSINE = {"hidden_cosine": {"tokens": "masked"}}
COSINE_AT_SAMPLED = {"hidden_cosine": {"tokens": "sampled", "share": 0.3}}


def new_bert(layers: int) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(vocab_size=VOCAB, **sizes, **drop)).double()


def new_batch(sampled: bool) -> tuple[Tensor, ...]:
    places = torch.stack([torch.randperm(LENGTH)[: MASKED + SAMPLED] for _ in range(BLOCKS)])
    labels = torch.randint(VOCAB, (BLOCKS, MASKED))
    labels[0, 0] = -100  # nothing is predicted there
    batch = (torch.randint(VOCAB, (BLOCKS, LENGTH)), places[:, :MASKED], labels)
    return (*batch, places[:, MASKED:]) if sampled else batch


def run(step: DistillationStep, batch: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    step.zero_grad()
    losses = step(*batch)
    losses["loss"].backward()
    return losses, {name: parameter.grad for name, parameter in step.named_parameters()}


@pytest.mark.parametrize(
    ("losses", "teachers", "last_layers"),
    [
        ({"masked_lm": 1}, 0, 1),
        (AT_MASKED, 1, 2),
        (AT_MASKED | COSINE, 1, 2),
        (AT_MASKED | COSINE, 2, 3),
        (AT_SAMPLED | COSINE, 1, 2),
        (AT_SAMPLED | COSINE_AT_SAMPLED, 1, 2),
        (AT_MASKED | COSINE_AT_SAMPLED, 2, 3),
        (AT_MASKED | COSINE | {"hidden_mse": {"layers": {0: 1}}}, 1, 2),
        (AT_MASKED | {"attention_relations": {"relation_heads": 4}}, 1, 2),
        (COSINE | {"masked_lm": 1, "logits_mse": 1}, 1, 0),
        (AT_MASKED | {"hidden_mse": {"layers": {1: 2}}}, 1, 1),
        (AT_MASKED | {"hidden_cosine": 1}, 1, 0),
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_whole_layers(
    losses: dict[str, Any], teachers: int, last_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Tensor] = []
    encode = LastLayer.encode

    def watched(self: LastLayer, input_ids: Tensor, at: Tensor, keep: Any) -> Any:
        ran.append(at)
        return encode(self, input_ids, at, keep)

    monkeypatch.setattr(LastLayer, "encode", watched)
    student, masters = build_student(new_bert(4)).double().train(), [new_bert(4) for _ in range(teachers)]
    batch = new_batch("sampled" in str(losses))
    found, gradients = run(DistillationStep(student, masters, objective_from(losses)), batch)
    assert len(ran) == last_layers

    monkeypatch.setattr("potstill.training.predictor.last_layer_at", lambda model, reads: None)
    expected, wanted = run(DistillationStep(student, masters, objective_from(losses)), batch)
    assert len(ran) == last_layers
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)
    for name, gradient in wanted.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
