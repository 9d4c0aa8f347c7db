"""BERT, and how a DistilBERT is made from one."""

import warnings

from transformers import BertConfig, DistilBertConfig, PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.bert_layers import BertLayers
from potstill.student.interface import Shape, VocabularyHead
from potstill.student.tensors import renamed
from potstill.student.wordpiece import WordPiece

# BERT's modules under DistilBERT's names. Whole modules, so that activations with parameters of their own come along.
# The token-type embeddings and the pooler have no counterpart.
OUTSIDE_LAYERS = {
    "bert.embeddings.word_embeddings": "distilbert.embeddings.word_embeddings",
    "bert.embeddings.position_embeddings": "distilbert.embeddings.position_embeddings",
    "bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm",
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.transform_act_fn": "activation",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    # BERT registers its output bias twice; `decoder.bias` is the one its forward pass adds.
    "cls.predictions.decoder": "vocab_projector",
}
INSIDE_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "intermediate.intermediate_act_fn": "ffn.activation",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
POSITIONS = "distilbert.embeddings.position_embeddings.weight"
DISTILBERT_LAYER_NORM_EPS = 1e-12


class Bert(BertLayers):
    """The family of `BertForMaskedLM`. Its students are `DistilBertForMaskedLM` (Sanh et al. 2019, section 3)."""

    model_type = "bert"
    layer_prefix = "bert.encoder.layer."
    tokenizer = WordPiece()
    reads_rows = True

    def restore(self, model: PreTrainedModel, missing: set[str]) -> set[str]:
        """See `Family.restore`.

        Transformers 4 held one output bias under two names and wrote `cls.predictions.bias` alone. Transformers 5
        shares it between the names only where the projection is tied too, and otherwise leaves the other at zero.
        """
        predictions = model.cls.predictions
        if "cls.predictions.decoder.bias" not in missing or "cls.predictions.bias" in missing:
            return set()
        predictions.decoder.bias.data.copy_(predictions.bias.data)
        return {"cls.predictions.decoder.bias"}

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        predictions = model.cls.predictions
        return VocabularyHead(predictions.transform, predictions.decoder.weight, predictions.decoder.bias)

    def student_config(self, teacher_config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
        """See `Family.student_config`: a DistilBERT of the teacher's sizes.

        Warns when the teacher's `layer_norm_eps` is not the 1e-12 that DistilBERT fixes.

        Raises:
            PotstillError: The teacher is a decoder, or its positions are not absolute.
        """
        reason = self.unsupported(teacher_config)
        if reason is not None:
            raise PotstillError(f"this BERT cannot be a teacher: it {reason}")
        if teacher_config.layer_norm_eps != DISTILBERT_LAYER_NORM_EPS:
            # An eps acts as sqrt(variance / (variance + eps)): no constant that could be folded into the weights.
            warnings.warn(
                f"the teacher's layer_norm_eps is {teacher_config.layer_norm_eps:g} and DistilBERT's is fixed at "
                f"{DISTILBERT_LAYER_NORM_EPS:g}: the student does not start exactly where the teacher is",
                stacklevel=3,
            )
        return DistilBertConfig(
            vocab_size=teacher_config.vocab_size,
            max_position_embeddings=teacher_config.max_position_embeddings,
            sinusoidal_pos_embds=False,
            n_layers=len(layers),
            n_heads=teacher_config.num_attention_heads,
            dim=teacher_config.hidden_size,
            hidden_dim=teacher_config.intermediate_size,
            dropout=teacher_config.hidden_dropout_prob,
            attention_dropout=teacher_config.attention_probs_dropout_prob,
            activation=teacher_config.hidden_act,
            initializer_range=teacher_config.initializer_range,
            pad_token_id=teacher_config.pad_token_id,
            bos_token_id=teacher_config.bos_token_id,
            eos_token_id=teacher_config.eos_token_id,
            tie_word_embeddings=teacher_config.tie_word_embeddings,
        )

    def copy_weights(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int], fold_token_types: bool
    ) -> None:
        """See `Family.copy_weights`.

        The head's transform and its LayerNorm are copied too: left at random they would spoil what the copied
        projection reads.
        """
        state = teacher.state_dict()
        modules = dict(OUTSIDE_LAYERS)
        weights = renamed(state, modules)
        for new, old in enumerate(layers):
            in_layer = {
                f"{self.layer_prefix}{old}.{bert}": f"distilbert.transformer.layer.{new}.{distilbert}"
                for bert, distilbert in INSIDE_LAYER.items()
            }
            weights |= renamed(state, in_layer)
        if fold_token_types:
            segment_0 = state["bert.embeddings.token_type_embeddings.weight"][0]
            weights[POSITIONS] = weights[POSITIONS].to(student.dtype) + segment_0.to(student.dtype)
        # Strict: a tensor left over, missing or of another shape is an error, never a silent half-copy.
        student.load_state_dict(weights)

    def new_config(self, shape: Shape) -> PreTrainedConfig:
        """See `Family.new_config`."""
        return BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.usable_length,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            pad_token_id=shape.pad_token_id,
        )
