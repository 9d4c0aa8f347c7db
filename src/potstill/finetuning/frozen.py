"""A frozen encoder with a small trained head, as for ELMo in the paper's table."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

WIDTH = 256
"""Width of each direction of the BiLSTM."""


class FrozenEncoderConfig(PreTrainedConfig):
    """Config of a `FrozenEncoder`: the config of its encoder, and whether its task is to find spans."""

    model_type = "potstill-frozen-encoder"

    def __init__(
        self, encoder: dict[str, Any] | None = None, spans: bool = False, dropout: float = 0.2, **options: Any
    ) -> None:
        self.encoder = encoder or {}
        self.spans = spans
        self.dropout = dropout
        super().__init__(**options)


class FrozenEncoder(PreTrainedModel):
    """An encoder that is never trained, a BiLSTM over its hidden states, and attention that pools the BiLSTM's states.

    For spans the states are not pooled: each token's state gives its start and end logits. The encoder reads a pair of
    sentences as one sequence.
    """

    config_class = FrozenEncoderConfig
    base_model_prefix = "encoder"

    def __init__(self, config: FrozenEncoderConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        spans = config.spans
        if encoder is None:
            encoder = AutoModel.from_config(AutoConfig.for_model(**config.encoder))
        self.encoder = encoder.requires_grad_(False)
        self.lstm = nn.LSTM(encoder.config.hidden_size, WIDTH, batch_first=True, bidirectional=True)
        if not spans:
            self.attention = nn.Linear(2 * WIDTH, 1)
        self.classifier = nn.Linear(2 * WIDTH, 2 if spans else config.num_labels)
        self.post_init()

    @classmethod
    def on(cls, model: PreTrainedModel, spans: bool, seed: int) -> FrozenEncoder:
        """Use the encoder and the labels of a model with a head, and initialise a new head with the seed."""
        encoder = model.base_model
        names = ("num_labels", "id2label", "label2id", "problem_type", "pad_token_id")
        labels = {name: getattr(model.config, name) for name in names}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(FrozenEncoderConfig(encoder.config.to_dict(), spans, **labels), encoder)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initial weights that the modules set themselves."""

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Set the mode of the head; the encoder always stays in evaluation mode, without dropout."""
        super().train(mode)
        self.encoder.eval().requires_grad_(False)  # loading weights may replace parameters by new ones
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **options: Any
    ) -> Any:
        """Return logits (B, C), or start and end logits (B, L) each, for tokens (B, L)."""
        inputs = (
            {}
            if token_type_ids is None or not self.config.encoder.get("type_vocab_size")
            else {"token_type_ids": token_type_ids}
        )
        with torch.no_grad():
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        lengths = attention_mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=hidden.shape[1]
        )
        states = F.dropout(states, self.config.dropout, self.training)
        if self.config.spans:
            start, end = self.classifier(states).unbind(dim=-1)
            return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)
        scores = self.attention(states).squeeze(-1).masked_fill(attention_mask == 0, -torch.inf)
        pooled = (scores.softmax(dim=1).unsqueeze(-1) * states).sum(1)
        return SequenceClassifierOutput(logits=self.classifier(pooled))


AutoConfig.register(FrozenEncoderConfig.model_type, FrozenEncoderConfig)
AutoModelForSequenceClassification.register(FrozenEncoderConfig, FrozenEncoder)
AutoModelForQuestionAnswering.register(FrozenEncoderConfig, FrozenEncoder)
