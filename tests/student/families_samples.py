"""A tiny config of every family: a new family is one line here, and everything in `test_every_family.py` tests it."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    CamembertConfig,
    Data2VecTextConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RoFormerConfig,
    XLMRobertaConfig,
)

from potstill.student import family_of

LENGTH = 19
"""Tokens that the models read at most."""

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": LENGTH,
}
DISTIL = {"dim": 24, "n_layers": 4, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": LENGTH}
GPT2 = {"vocab_size": 101, "n_embd": 24, "n_layer": 4, "n_head": 3, "n_inner": 40, "n_positions": LENGTH}
FROM_PADDING = SIZES | {"max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, "pad_token_id": 1}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
DISTANCES = {
    "relative_attention": True,
    "position_buckets": 6,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "bert": lambda **options: BertConfig(**(SIZES | options)),
    "distilbert": lambda **options: DistilBertConfig(**({"vocab_size": 101} | DISTIL | options)),
    "roberta": lambda **options: RobertaConfig(**(FROM_PADDING | options)),
    "xlm-roberta": lambda **options: XLMRobertaConfig(**(FROM_PADDING | options)),
    "camembert": lambda **options: CamembertConfig(**(FROM_PADDING | options)),
    "gpt2": lambda **options: GPT2Config(**(GPT2 | options)),
    "modernbert": lambda **options: ModernBertConfig(**(SIZES | SPECIAL | {"local_attention": 8} | options)),
    "electra": lambda **options: ElectraConfig(**(SIZES | {"embedding_size": 12} | options)),
    "deberta-v2": lambda **options: DebertaV2Config(**(SIZES | DISTANCES | options)),
    "mpnet": lambda **options: MPNetConfig(**(SIZES | {"max_position_embeddings": LENGTH + 2} | options)),
}

GENERIC: dict[str, Callable[..., PreTrainedConfig]] = {
    "data2vec-text": lambda **options: Data2VecTextConfig(**(FROM_PADDING | options)),
    "roformer": lambda **options: RoFormerConfig(**(SIZES | options)),
    "opt": lambda **options: OPTConfig(**(SIZES | {"ffn_dim": 40, "word_embed_proj_dim": 12} | options)),
}
"""Language models of the generic path, the last of them causal."""

SAMPLES = CONFIGS | GENERIC


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model with every parameter random: a freshly built one has zero biases and unit LayerNorms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family_of(config).auto_class.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()
