"""A frozen model whose GELU is computed with its matrix product says the same, and another activation is left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from potstill import build_student
from potstill.student import family_of
from potstill.student.fused import LinearGelu

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def new_bert(**options: object) -> BertForMaskedLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=50, **(sizes | options))).eval()


@pytest.mark.parametrize("device", DEVICES)
def test_linear_and_gelu_in_one(device: str) -> None:
    linear, hidden = nn.Linear(16, 24).to(device), 3 * torch.randn(2, 5, 16, device=device)
    with torch.no_grad():
        assert (LinearGelu(linear)(hidden) - F.gelu(linear(hidden))).abs().max() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_fused_model_says_the_same(family: str, device: str) -> None:
    model = new_bert()
    model = (model if family == "bert" else build_student(model, 1).eval()).to(device)
    input_ids = torch.randint(50, (2, 7), device=device)
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        family_of(model).fuse_gelu(model)
        assert sum(isinstance(module, LinearGelu) for module in model.modules()) == model.config.num_hidden_layers
        assert (model(input_ids=input_ids).logits - before).abs().max() < 5e-3


def test_another_activation_stays() -> None:
    model = new_bert(hidden_act="relu")
    family_of(model).fuse_gelu(model)
    assert not any(isinstance(module, LinearGelu) for module in model.modules())
