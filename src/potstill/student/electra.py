"""ELECTRA: generators are masked language models, discriminators are encoders; students are of the same class."""

from collections.abc import Collection

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.bert_layers import BertLayers
from potstill.student.interface import VocabularyHead
from potstill.student.same_class import SameClass


class Electra(BertLayers, SameClass):
    """The family of `ElectraForMaskedLM` (Clark et al. 2020).

    The embeddings may be narrower than the layers. The matrix of the head is as wide as the embeddings.
    """

    model_type = "electra"
    layer_prefix = "electra.encoder.layer."
    reads_rows = True

    def headless_because(self, config: PreTrainedConfig, names: Collection[str]) -> str | None:
        """See `Family.headless_because`."""
        if "ElectraForPreTraining" in (config.architectures or []):
            return (
                "is a discriminator (ElectraForPreTraining), which is an encoder without a masked-LM head: "
                "use the generator that it was trained with"
            )
        return None

    def embed(self, model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """See `Family.embed`. Embeddings that are narrower than the layers go through a projection."""
        embedded = super().embed(model, input_ids, position_ids)
        project = getattr(model.base_model, "embeddings_project", None)
        return embedded if project is None else project(embedded)

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        decoder = model.generator_lm_head
        return VocabularyHead(model.generator_predictions, decoder.weight, decoder.bias)
