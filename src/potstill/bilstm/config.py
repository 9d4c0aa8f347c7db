"""The config of the BiLSTM."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

MODEL_TYPE = "potstill-bilstm"


class BiLSTMConfig(PreTrainedConfig):
    """Config of a `BiLSTMForSequenceClassification`. The default sizes are the smaller ones of the paper.

    Args:
        vocab_size: number of rows in the embeddings.
        embedding_size: width of an embedding in each of the two channels.
        hidden_size: units of the LSTM in each direction.
        intermediate_size: width of the layer with the ReLU.
        dropout: share of the embeddings, and of the inputs of the two layers above the LSTM, set to 0 in training.
        pairs: whether an input is two texts, which the same encoder reads one by one.
        type_vocab_size: 2 if `token_type_ids` tell the second text from the first; 1 if the token `sep_token_id` that
            ends the first text does.
        embeddings_from: name of the model whose embeddings both channels began with; None for random ones.
        options: see `PreTrainedConfig`.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 300,
        hidden_size: int = 150,
        intermediate_size: int = 200,
        dropout: float = 0.2,
        pairs: bool = False,
        type_vocab_size: int = 1,
        sep_token_id: int | None = None,
        embeddings_from: str | None = None,
        **options: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        self.pairs = pairs
        self.type_vocab_size = type_vocab_size
        self.embeddings_from = embeddings_from
        super().__init__(sep_token_id=sep_token_id, **options)


AutoConfig.register(MODEL_TYPE, BiLSTMConfig)
