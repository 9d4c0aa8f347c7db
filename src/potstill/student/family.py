"""The families there are. A new one is a file beside `bert.py` and a line in `FAMILIES`."""

from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.bert import Bert
from potstill.student.distilbert import DistilBert
from potstill.student.interface import Family, VocabularyHead

__all__ = ["FAMILIES", "Family", "VocabularyHead", "family_of"]

FAMILIES: tuple[Family, ...] = (Bert(), DistilBert())


def family_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Family:
    """The family of a model or of its config, by `config.model_type`.

    Raises:
        PotstillError: No family has this model type.
    """
    config = getattr(model_or_config, "config", model_or_config)
    return family_of_type(config.model_type)


def family_of_type(model_type: str | None) -> Family:
    """The family whose configs carry this `model_type`.

    Raises:
        PotstillError: No family has this model type.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise PotstillError(f"models of type {model_type!r} are not supported: use one of type {known}")
