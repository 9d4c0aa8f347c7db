"""The families there are. A new one is a file beside `bert.py` and a line in `FAMILIES`.

Other architectures take the generic path.
"""

from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.bert import Bert
from potstill.student.deberta import DebertaV2
from potstill.student.distilbert import DistilBert
from potstill.student.electra import Electra
from potstill.student.generic import generic_family
from potstill.student.gpt2 import Gpt2
from potstill.student.interface import Family, TokenizerKind
from potstill.student.modernbert import ModernBert
from potstill.student.mpnet import MPNet
from potstill.student.roberta import Camembert, Roberta, XlmRoberta

FAMILIES: tuple[Family, ...] = (
    Bert(),
    DistilBert(),
    Roberta(),
    XlmRoberta(),
    Camembert(),
    Gpt2(),
    ModernBert(),
    Electra(),
    DebertaV2(),
    MPNet(),
)
_FAMILIES: dict[str | None, Family] = {family.model_type: family for family in FAMILIES}

PRUNED = "pruned-"
"""What the type of a pruned model begins with, before the type that it was: see `potstill.student.pruned`."""


def family_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Family:
    """The family of a model or of its config, by `config.model_type`: see `family_of_type`.

    Raises:
        PotstillError: As `family_of_type`.
    """
    config = getattr(model_or_config, "config", model_or_config)
    return family_of_type(config.model_type)


def family_or_none(config: PreTrainedConfig) -> Family | None:
    """The family of a model with this config, or None for a model of no family of its own."""
    return _FAMILIES.get(plain_type(config.model_type))


def family_of_type(model_type: str | None) -> Family:
    """The family whose configs carry this `model_type`: the generic one where there is none of their own.

    A pruned model is of the family that it was of before.

    Raises:
        PotstillError: Transformers has no language model of this type, or none that reads text with one stack of
            layers.
    """
    model_type = plain_type(model_type)
    return _FAMILIES[model_type] if model_type in _FAMILIES else generic_family(model_type)


def plain_type(model_type: str | None) -> str | None:
    """The type that a model had before it was pruned; the type itself of a model that was not."""
    return model_type and model_type.removeprefix(PRUNED)


def new_model_family(model_type: str | None) -> Family:
    """The family of a new model: the one asked for, or the first one if none is.

    Raises:
        PotstillError: No family of this type makes new models.
    """
    return _making_new_models(model_type)[0]


def new_tokenizer_kind(model_type: str | None) -> TokenizerKind:
    """The kind of tokenizer that goes with a new model: see `new_model_family`."""
    return _making_new_models(model_type)[1]


def _making_new_models(model_type: str | None) -> tuple[Family, TokenizerKind]:
    found = [(family, family.tokenizer) for family in FAMILIES if family.tokenizer is not None]
    for family, kind in found:
        if model_type in (None, family.model_type):
            return family, kind
    known = ", ".join(family.model_type for family, _ in found)
    raise PotstillError(f"--model_type is {model_type!r}: new models are of one of the types {known}.")
