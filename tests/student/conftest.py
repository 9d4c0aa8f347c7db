from collections.abc import Callable

import pytest
import torch
from families_samples import SIZES, random_model
from transformers import BertConfig, BertForMaskedLM


@pytest.fixture
def make_bert() -> Callable[..., BertForMaskedLM]:
    """A small BERT with every parameter random, from the options of its config."""

    def make(dtype: torch.dtype = torch.float32, seed: int = 0, **options: object) -> BertForMaskedLM:
        return random_model(BertConfig(**(SIZES | options)), dtype, seed)

    return make


@pytest.fixture
def input_ids() -> torch.Tensor:
    """(5, 19) token ids, [PAD] = 0 among them."""
    return torch.randint(0, 101, (5, 19), generator=torch.Generator().manual_seed(3))
