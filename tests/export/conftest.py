"""Small random models of every head, and one that is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import SIZES
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from potstill.export.export import export

NewModel = Callable[..., Path]


@pytest.fixture(scope="session")
def new_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> NewModel:
    """Save a random model of a class and config, with its tokenizer."""

    def save(kind: type, config: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(config)
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def classifier(new_model: NewModel, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A BERT for two classes that reads up to 32 tokens."""
    return new_model(
        BertForSequenceClassification,
        BertConfig(vocab_size=len(tiny_tokenizer), num_labels=2, max_position_embeddings=48, **SIZES),
    )


@pytest.fixture(scope="session")
def as_onnx(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, exported."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export(str(classifier), "onnx", str(folder))
    return folder
