"""potstill: distil a transformer encoder into a student of half its depth."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.corpus import Corpus, prepare
    from potstill.distillation import distill
    from potstill.errors import PotstillError
    from potstill.evaluation.compare import compare
    from potstill.evaluation.evaluate import evaluate
    from potstill.evaluation.evaluate_arguments import EvaluateArguments
    from potstill.finetuning.finetune import finetune
    from potstill.finetuning.finetune_arguments import FinetuneArguments
    from potstill.objective import DistillationObjective, Objective
    from potstill.recipe import DistillationArguments, PretrainingArguments
    from potstill.student import build_student, choose_layers, prune_embeddings, prune_vocabulary
    from potstill.training.layer_search import find_layers
    from potstill.training.pretrain import pretrain
    from potstill.training.trainer import DistillationTrainer

_MODULES = {
    "Corpus": "potstill.corpus",
    "DistillationArguments": "potstill.recipe",
    "DistillationObjective": "potstill.objective",
    "DistillationTrainer": "potstill.training.trainer",
    "EvaluateArguments": "potstill.evaluation.evaluate_arguments",
    "FinetuneArguments": "potstill.finetuning.finetune_arguments",
    "Objective": "potstill.objective",
    "PotstillError": "potstill.errors",
    "PretrainingArguments": "potstill.recipe",
    "build_student": "potstill.student",
    "choose_layers": "potstill.student",
    "compare": "potstill.evaluation.compare",
    "distill": "potstill.distillation",
    "evaluate": "potstill.evaluation.evaluate",
    "find_layers": "potstill.training.layer_search",
    "finetune": "potstill.finetuning.finetune",
    "prepare": "potstill.corpus",
    "pretrain": "potstill.training.pretrain",
    "prune_embeddings": "potstill.student",
    "prune_vocabulary": "potstill.student",
}

__all__ = [
    "Corpus",
    "DistillationArguments",
    "DistillationObjective",
    "DistillationTrainer",
    "EvaluateArguments",
    "FinetuneArguments",
    "Objective",
    "PotstillError",
    "PretrainingArguments",
    "build_student",
    "choose_layers",
    "compare",
    "distill",
    "evaluate",
    "find_layers",
    "finetune",
    "prepare",
    "pretrain",
    "prune_embeddings",
    "prune_vocabulary",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `potstill --help` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
