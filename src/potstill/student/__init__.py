"""A teacher in, its initial student out; and growing a model by copying its layers."""

from potstill.student.build import build_student
from potstill.student.family import family_of
from potstill.student.grow import grow, grow_optimizer_state
from potstill.student.interface import Family, VocabularyHead
from potstill.student.layers import choose_layers
from potstill.student.loading import load_masked_lm

__all__ = [
    "Family",
    "VocabularyHead",
    "build_student",
    "choose_layers",
    "family_of",
    "grow",
    "grow_optimizer_state",
    "load_masked_lm",
]
