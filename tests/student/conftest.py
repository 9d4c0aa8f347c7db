from collections.abc import Callable

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM


@pytest.fixture
def make_bert() -> Callable[..., BertForMaskedLM]:
    """A small BERT with every parameter random: a freshly built one has zero biases and unit LayerNorms."""

    def make(dtype: torch.dtype = torch.float32, seed: int = 0, **options: object) -> BertForMaskedLM:
        sizes = {
            "vocab_size": 101,
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "max_position_embeddings": 19,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = BertForMaskedLM(BertConfig(**(sizes | options))).to(dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model.eval()

    return make


@pytest.fixture
def input_ids() -> torch.Tensor:
    """(5, 19) token ids, [PAD] = 0 among them."""
    return torch.randint(0, 101, (5, 19), generator=torch.Generator().manual_seed(3))
