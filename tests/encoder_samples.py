"""Small random sentence encoders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from potstill.sentences import Dense, Pooling, SentenceEncoder

LENGTH = 24
"""Tokens that the encoders read."""


def save_encoder(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    modes: tuple[str, ...] = ("mean",),
    dense: Iterable[Dense] = (),
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    num_hidden_layers: int = 2,
) -> Path:
    """Save a random encoder, 32 wide, as a folder of sentence-transformers."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    name = next(iter(prompts), None) if prompts else None
    SentenceEncoder(model, tokenizer, LENGTH, Pooling(modes), dense, normalize, prompts, name).save(folder)
    return folder
