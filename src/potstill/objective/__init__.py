"""Losses of a batch from the states of student and teacher. Each loss has its own file; `Objective` is their sum."""

from potstill.objective.attention_relations import AttentionRelations
from potstill.objective.distillation import OF_DISTILBERT, DistillationObjective
from potstill.objective.ensemble import Ensemble, Mean
from potstill.objective.hidden_cosine import HiddenCosine
from potstill.objective.hidden_mse import HiddenMSE
from potstill.objective.losses import LOSSES, objective_from
from potstill.objective.objective import Objective
from potstill.objective.parts import CausalLM, LogitsMSE, MaskedLM, SoftTargets
from potstill.objective.term import Batch, Encoded, Flops, Term, check_layer
from potstill.objective.vocabulary import Vocabulary, check_vocabularies

__all__ = [
    "LOSSES",
    "OF_DISTILBERT",
    "AttentionRelations",
    "Batch",
    "CausalLM",
    "DistillationObjective",
    "Encoded",
    "Ensemble",
    "Flops",
    "HiddenCosine",
    "HiddenMSE",
    "LogitsMSE",
    "MaskedLM",
    "Mean",
    "Objective",
    "SoftTargets",
    "Term",
    "Vocabulary",
    "check_layer",
    "check_vocabularies",
    "objective_from",
]
