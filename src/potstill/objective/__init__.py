"""(student, teacher, batch) → named losses."""

from potstill.objective.distillation import DistillationObjective, Predictions, SoftTargets

__all__ = ["DistillationObjective", "Predictions", "SoftTargets"]
