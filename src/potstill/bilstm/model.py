"""One BiLSTM over two channels of embeddings (Tang et al. 2019, arXiv 1903.12136, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from potstill.bilstm.config import BiLSTMConfig
from potstill.bilstm.lstm import LastStates


class BiLSTMEncoder(nn.Module):
    """The embeddings and the LSTM: tokens in, one vector for each text out.

    Each token has an embedding that is trained and one that stays as it is (Kim 2014). Padding is never read.
    """

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.static = nn.Embedding(config.vocab_size, config.embedding_size)
        self.trained = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = LastStates(2 * config.embedding_size, config.hidden_size)
        self.static.requires_grad_(False)

    def forward(self, input_ids: Tensor, inside: Tensor) -> Tensor:
        """Return the last states of both directions, (B, 2H); 0 for a text without tokens.

        Args:
            input_ids: (B, L).
            inside: (B, L) bool, True for the tokens of the text, which are side by side.
        """
        length, places = input_ids.shape[1], torch.arange(input_ids.shape[1], device=input_ids.device)
        first = inside.long().argmax(dim=1)
        ids = input_ids.gather(1, (first[:, None] + places).clamp(max=length - 1))  # the text begins at 0
        embedded = torch.cat([self.static(ids), self.trained(ids)], dim=-1)
        return self.lstm(F.dropout(embedded, self.dropout, self.training), inside.sum(dim=1))


class BiLSTMForSequenceClassification(PreTrainedModel):
    """An encoder, a layer with a ReLU, and logits.

    Two texts are read one by one by the same encoder, and their vectors are compared: see `concatenate_compare`.
    """

    config_class = BiLSTMConfig
    base_model_prefix = "encoder"

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.encoder = BiLSTMEncoder(config)
        width = 2 * config.hidden_size
        self.dense = nn.Linear(4 * width if config.pairs else width, config.intermediate_size)
        self.classifier = nn.Linear(config.intermediate_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the channel that is trained."""
        return self.encoder.trained

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights of a module, as torch does; those of embeddings with a standard deviation of 0.1."""
        if isinstance(module, nn.LSTM | nn.Linear):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)

    def draw(self, seed: int) -> None:
        """Draw new weights with a seed. Embeddings stay as they are if they came from another model."""
        kept = (nn.Embedding,) if self.config.embeddings_from is not None else ()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for module in self.modules():
                if module is not self and not isinstance(module, kept):
                    self._init_weights(module)

    def train(self, mode: bool = True) -> BiLSTMForSequenceClassification:
        """Set the mode. The static channel is never trained."""
        super().train(mode)
        self.encoder.static.requires_grad_(False)  # loading weights may replace parameters by new ones
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """Return logits (B, C) for tokens (B, L). They are computed in float32, also under autocast.

        Autocast would run the LSTM in float16 on a GPU, even where bfloat16 is asked for. Its gradients are too small
        for that.
        """
        device = input_ids.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(input_ids, attention_mask, token_type_ids)
        inside = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        vectors = [self.encoder(input_ids, part) for part in self._texts(input_ids, inside.bool(), token_type_ids)]
        vector = concatenate_compare(*vectors) if self.config.pairs else vectors[0]
        hidden = self.dense(F.dropout(vector, self.config.dropout, self.training)).relu()
        return SequenceClassifierOutput(logits=self.classifier(F.dropout(hidden, self.config.dropout, self.training)))

    def _texts(self, input_ids: Tensor, inside: Tensor, token_type_ids: Tensor | None) -> list[Tensor]:
        """Return for each text which tokens belong to it, (B, L) bool."""
        if not self.config.pairs:
            return [inside]
        if token_type_ids is not None and self.config.type_vocab_size > 1:
            second = token_type_ids > 0
        else:
            sep = -1 if self.config.sep_token_id is None else self.config.sep_token_id
            ends = (input_ids == sep).long()
            second = ends.cumsum(dim=1) > ends
        return [inside & ~second, inside & second]


def concatenate_compare(first: Tensor, second: Tensor) -> Tensor:
    """Return [a, b, a ⊙ b, |a − b|], (B, 4H), for the vectors of two texts, (B, H) each (section 3.1)."""
    return torch.cat([first, second, first * second, (first - second).abs()], dim=-1)


AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification)
