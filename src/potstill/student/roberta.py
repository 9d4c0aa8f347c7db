"""RoBERTa, and the encoders that are built like it; their students are of the same class, as DistilRoBERTa is."""

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, RobertaConfig
from transformers.activations import gelu

from potstill.errors import PotstillError
from potstill.student.bert_layers import BertLayers
from potstill.student.byte_level import ByteLevel
from potstill.student.interface import Shape, TokenizerKind, VocabularyHead
from potstill.student.same_class import SameClass


class Roberta(BertLayers, SameClass):
    """The family of `RobertaForMaskedLM` (Liu et al. 2019).

    Its positions are counted from the id of padding + 1 on, so that 514 position embeddings serve 512 tokens. The
    embeddings count them from the token ids themselves, on the device, and never wait for it.
    """

    model_type = "roberta"
    layer_prefix = "roberta.encoder.layer."
    tokenizer: TokenizerKind | None = ByteLevel()
    reads_rows = True

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        if config.pad_token_id is None:
            return "has no pad_token_id in its config, from which a RoBERTa counts its positions"
        return super().unsupported(config)

    def usable_length(self, config: PreTrainedConfig) -> int:
        """See `Family.usable_length`."""
        return config.max_position_embeddings - _first_position(config.pad_token_id or 0)

    def restore(self, model: PreTrainedModel, missing: set[str]) -> set[str]:
        """See `Family.restore`. The output bias has two names, which transformers 5 ties only if the weight is tied."""
        if "lm_head.decoder.bias" not in missing or "lm_head.bias" in missing:
            return set()
        model.lm_head.decoder.bias.data.copy_(model.lm_head.bias.data)
        return {"lm_head.decoder.bias"}

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        lm_head = model.lm_head

        def transform(hidden: Tensor) -> Tensor:
            return lm_head.layer_norm(gelu(lm_head.dense(hidden)))

        return VocabularyHead(transform, lm_head.decoder.weight, lm_head.decoder.bias)

    def new_config(self, shape: Shape) -> PreTrainedConfig:
        """See `Family.new_config`."""
        if shape.pad_token_id is None:
            raise PotstillError(
                "The tokenizer has no token to pad with, from whose id positions are counted: set its pad_token."
            )
        return RobertaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.usable_length + _first_position(shape.pad_token_id),
            type_vocab_size=1,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            layer_norm_eps=1e-5,
            pad_token_id=shape.pad_token_id,
            bos_token_id=shape.bos_token_id,
            eos_token_id=shape.eos_token_id,
        )


class XlmRoberta(Roberta):
    """The family of `XLMRobertaForMaskedLM`: RoBERTa in many languages, with a SentencePiece vocabulary."""

    model_type = "xlm-roberta"
    tokenizer = None


class Camembert(Roberta):
    """The family of `CamembertForMaskedLM`: RoBERTa in French, with a SentencePiece vocabulary."""

    model_type = "camembert"
    tokenizer = None


def _first_position(pad_token_id: int) -> int:
    """Return the position of a text's first token."""
    return pad_token_id + 1
