"""A teacher in, its initial student out; and growing a model by copying its layers."""

from potstill.student.build import build_student
from potstill.student.facts import takes_token_types, usable_length
from potstill.student.family import family_of
from potstill.student.grow import grow, grow_optimizer_state
from potstill.student.interface import Family, VocabularyHead, is_headless
from potstill.student.last_layer import LastLayer, at_tokens, last_layer_at, needs_few_tokens
from potstill.student.layers import choose_layers
from potstill.student.loading import load_masked_lm
from potstill.student.narrow import narrow
from potstill.student.rows import Rows
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, Tokens
from potstill.student.teacher_loading import load_teacher
from potstill.student.vocabulary_pruning import prune_embeddings, prune_vocabulary

__all__ = [
    "LAST_HIDDEN",
    "AttentionInputs",
    "Family",
    "LastLayer",
    "Reads",
    "Rows",
    "States",
    "Tokens",
    "VocabularyHead",
    "at_tokens",
    "build_student",
    "choose_layers",
    "family_of",
    "grow",
    "grow_optimizer_state",
    "is_headless",
    "last_layer_at",
    "load_masked_lm",
    "load_teacher",
    "narrow",
    "needs_few_tokens",
    "prune_embeddings",
    "prune_vocabulary",
    "takes_token_types",
    "usable_length",
]
