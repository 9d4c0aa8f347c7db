"""(student, teacher, batch) → named losses."""

from potstill.objective.distillation import DistillationObjective, Predictions, SoftTargets, hidden_cosine_loss

__all__ = ["DistillationObjective", "Predictions", "SoftTargets", "hidden_cosine_loss"]
