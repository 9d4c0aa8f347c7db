"""What a model reads at most, and whether it takes token types: asked of the model itself, of a known family or not."""

from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BartConfig,
    BertConfig,
    Data2VecTextConfig,
    DebertaV2Config,
    ElectraConfig,
    GPT2Config,
    IBertConfig,
    LiltConfig,
    LongformerConfig,
    LukeConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
    RobertaPreLayerNormConfig,
    T5Config,
    XLMRobertaXLConfig,
    XmodConfig,
)

from potstill.student import takes_token_types, usable_length

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "pad_token_id": 3,
}
OTHERS: list[PreTrainedConfig] = [
    RobertaConfig(**SIZES),
    RobertaPreLayerNormConfig(**SIZES),
    XLMRobertaXLConfig(**SIZES),
    XmodConfig(**SIZES, languages=["en_XX"], default_language="en_XX"),
    Data2VecTextConfig(**SIZES),
    IBertConfig(**SIZES),
    LongformerConfig(**SIZES, attention_window=[4]),
    LukeConfig(**SIZES, entity_vocab_size=5, entity_emb_size=16),
    MPNetConfig(**(SIZES | {"pad_token_id": 1})),  # it counts from 1 on, whatever its config says
    BertConfig(**SIZES),
    ElectraConfig(**SIZES, embedding_size=16),
    AlbertConfig(**SIZES, embedding_size=16),
    GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0),
]


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.model_type)
@torch.no_grad()
def test_a_model_reads_as_many_tokens_and_no_more(config: PreTrainedConfig) -> None:
    length = usable_length(config)
    assert length is not None
    model = AutoModel.from_config(config).eval()
    assert model(torch.full((2, length), 7))[0].shape[:2] == (2, length)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((2, length + 1), 7))


def test_models_that_say_nothing_of_a_length_have_no_limit() -> None:
    assert usable_length(T5Config()) is None
    assert usable_length(PreTrainedConfig()) is None


def test_positions_beside_those_of_padding_are_all_used() -> None:
    lilt = LiltConfig(**SIZES)
    assert usable_length(lilt) == 20
    assert usable_length(BartConfig(max_position_embeddings=24, pad_token_id=3)) == 24  # has two embeddings more


def test_without_an_id_of_padding_positions_begin_at_one() -> None:
    assert usable_length(MPNetConfig(max_position_embeddings=24, pad_token_id=None)) == 22  # its own are from two on
    assert usable_length(XLMRobertaXLConfig(max_position_embeddings=24, pad_token_id=None)) == 23
    assert usable_length(RobertaConfig(max_position_embeddings=24, pad_token_id=None)) == 23


@pytest.mark.parametrize("value", ["many", [512], -1, 0, None])
def test_a_length_that_is_none_is_no_limit(value: object) -> None:
    config = PreTrainedConfig()
    config.max_position_embeddings = value
    assert usable_length(config) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(), True),
        (BertConfig(type_vocab_size=1), False),
        (RobertaConfig(type_vocab_size=1), False),
        (RobertaConfig(type_vocab_size=2), True),
        (ElectraConfig(), True),
        (ElectraConfig(type_vocab_size=1), False),
        (DebertaV2Config(type_vocab_size=0), False),
        (MPNetConfig(), False),
        (T5Config(), False),
    ],
    ids=str,
)
def test_token_types(config: PreTrainedConfig, expected: bool) -> None:
    assert takes_token_types(config) is expected
