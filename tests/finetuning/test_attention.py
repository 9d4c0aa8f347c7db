"""Attention under a mask, where one of PyTorch's implementations gives gradients that are no numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from potstill.finetuning.objective import TaskObjective
from potstill.finetuning.step import TaskStep, run


class Watching(nn.Module):
    """Notes whether cuDNN's attention could be chosen while it runs."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> Any:
        return torch.backends.cuda.cudnn_sdp_enabled()


def test_cudnn_s_attention_is_not_chosen_and_is_there_again_afterwards() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    ids = torch.ones(1, 4, dtype=torch.long)
    assert not run(Watching(), {"input_ids": ids, "attention_mask": ids})
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.gpu
@pytest.mark.parametrize("length", [64, 192])
def test_gradients_are_finite_where_scores_are_very_negative(length: int) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=2, **sizes)).cuda()
    attention = model.bert.encoder.layer[0].attention.self
    with torch.no_grad():  # every query and key has one feature alike, whose product outweighs all else
        for linear, value in ((attention.query, 8.0), (attention.key, -120.0)):
            linear.weight.mul_(0.01)
            linear.bias.zero_()
            linear.bias[0] = value
    batch = {
        "input_ids": torch.randint(50, (8, length), device="cuda"),
        "attention_mask": torch.ones(8, length, dtype=torch.long, device="cuda"),
        "labels": torch.randint(2, (8,), device="cuda"),
    }
    batch["attention_mask"][0, length // 2 :] = 0
    with torch.autocast("cuda", torch.bfloat16):
        TaskStep(model, TaskObjective())(**batch)["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
