"""FLOPs by formula are those that PyTorch counts, in each architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from families_samples import SAMPLES, SIZES, random_model
from packaging.version import Version
from torch.utils.flop_counter import FlopCounterMode
from transformers import BloomConfig, DebertaV2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from potstill.bench.flops import forward_flops
from potstill.student import Reads, family_of

MORE: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**(SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2})),
    "bloom": lambda: BloomConfig(vocab_size=101, hidden_size=24, n_layer=4, n_head=3),
}
ROWS, LENGTH = 3, 16


def counted(model: PreTrainedModel) -> int:
    """FLOPs of a forward pass over 3 × 16 tokens."""
    if model.config.model_type != "bloom":  # has but one attention
        model.set_attn_implementation("eager")  # of matrix products that the counter knows on every device
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(5, 5 + ROWS * LENGTH).reshape(ROWS, LENGTH))
    return counter.get_total_flops()


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.19"),
    reason="transformers before 5.19 computes the angles of positions by matrix products, which are counted too",
)
@pytest.mark.parametrize("model_type", [name for name in [*SAMPLES, *MORE] if name not in ("deberta-v2", "roformer")])
def test_a_forward_pass(model_type: str) -> None:
    model = random_model((SAMPLES | MORE)[model_type]())
    tokens = ROWS * LENGTH
    seen = [family_of(model).attended(model.config, layer, LENGTH) for layer in range(4)]
    unseen = 4 * 24 * sum(LENGTH - count for count in seen) * tokens  # is computed all the same
    assert forward_flops(model, LENGTH) * tokens == counted(model) - unseen


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kinds", [["c2p"], ["p2c", "c2p"], []])
@pytest.mark.parametrize("options", [{}, {"conv_kernel_size": 3}, {"legacy": False}, {"relative_attention": False}])
def test_distances_are_projected_once_for_a_batch(options: dict[str, Any], kinds: list[str], shared: bool) -> None:
    distances = {"relative_attention": True, "position_buckets": 6, "pos_att_type": kinds, "share_att_key": shared}
    model = random_model(DebertaV2Config(**(SIZES | distances | options)))
    width, depth, embeddings = 24, 4, 2 * 6
    projections = 2 * depth * embeddings * width**2 * (2 if shared else len(kinds))
    if not model.config.relative_attention:
        projections = 0
    assert forward_flops(model, LENGTH) * ROWS * LENGTH + projections == counted(model)


def test_the_head_counts_where_it_is_read() -> None:
    model = random_model(SAMPLES["electra"]())
    inside = 4 * (4 * 24 * 24 + 2 * 24 * 40) + 12 * 24  # layers, and the projection of the embeddings
    attention = 4 * 4 * LENGTH * 24
    assert forward_flops(model, LENGTH, 0.0) == 2 * inside + attention
    assert forward_flops(model, LENGTH, 0.5) == 2 * inside + attention + 24 * 12 + 12 * 101
    half = forward_flops(model, LENGTH, 0.0, Reads(hidden={1}))
    assert half == 2 * inside + attention - 2 * 2 * (4 * 24 * 24 + 2 * 24 * 40) - 2 * 4 * LENGTH * 24
