"""What is exported says what the model says: masks, attention, and the last layer of the first token alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import DISTIL, SIZES
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)

from potstill.export.module import ExportModule
from potstill.export.source import Source

VOCAB = 60


@pytest.mark.parametrize(
    ("kind", "config", "outputs"),
    [
        (BertForSequenceClassification, BertConfig(vocab_size=VOCAB, **SIZES), ("logits",)),
        (DistilBertForSequenceClassification, DistilBertConfig(vocab_size=VOCAB, **DISTIL), ("logits",)),
        (CamembertForSequenceClassification, CamembertConfig(vocab_size=VOCAB, **SIZES), ("logits",)),
        (RobertaForSequenceClassification, RobertaConfig(vocab_size=VOCAB, **SIZES), ("logits",)),
        (ElectraForSequenceClassification, ElectraConfig(vocab_size=VOCAB, embedding_size=16, **SIZES), ("logits",)),
        (MPNetForSequenceClassification, MPNetConfig(vocab_size=VOCAB, **SIZES), ("logits",)),
        (BertForQuestionAnswering, BertConfig(vocab_size=VOCAB, **SIZES), ("start_logits", "end_logits")),
        (DistilBertForMaskedLM, DistilBertConfig(vocab_size=VOCAB, **DISTIL), ("logits",)),
        (RobertaForTokenClassification, RobertaConfig(vocab_size=VOCAB, num_labels=5, **SIZES), ("logits",)),
    ],
)
@torch.no_grad()
def test_the_module_says_what_the_model_says(kind: Any, config: Any, outputs: tuple[str, ...]) -> None:
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    ids = torch.randint(5, VOCAB, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 4:], mask[2, 1:] = 0, 0
    expected = model(input_ids=ids, attention_mask=mask)
    module = ExportModule(
        model, ("input_ids", "attention_mask"), outputs, outputs == ("logits",) and "Seq" in str(kind)
    )
    for name, found in zip(outputs, module(ids, mask), strict=True):
        theirs = expected[name]
        if found.dim() == 2 and name == "logits":
            torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)
        else:  # what stands at a padded place is nobody's answer
            torch.testing.assert_close(found[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=1e-5)


def test_the_source_is_left_as_it_was(classifier: Path) -> None:
    source = Source.open(str(classifier))
    before = [type(module) for module in source.model.modules()]
    source.module()
    assert [type(module) for module in source.model.modules()] == before
    assert source.model.config._attn_implementation == "sdpa"
    assert isinstance(source.model, type(AutoModelForSequenceClassification.from_pretrained(classifier)))


def test_of_the_last_layer_one_token_is_computed(classifier: Path) -> None:
    shapes = []
    module = Source.open(str(classifier)).module()
    layer = module.model.bert.encoder.layer[-1].layer
    layer.intermediate.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    layer.attention.self.key.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    ids = torch.randint(5, 20, (2, 9))
    module(ids, torch.ones_like(ids), torch.zeros_like(ids))
    assert shapes == [(2, 9, 32), (2, 1, 64)]
