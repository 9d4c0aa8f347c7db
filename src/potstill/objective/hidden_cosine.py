"""Hidden-state cosine: the student's last hidden states point in the same direction as the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.term import AtTokens, Batch, Term, sample_weights
from potstill.student import Reads


@dataclass(frozen=True, kw_only=True)
class HiddenCosine(AtTokens, Term):
    """Mean over tokens of 1 − cos(student, teacher) of the last hidden states (Sanh et al. 2019, section 2).

    It requires equal widths. Padding does not count. Of several teachers only the first is compared with. If all losses
    read masked tokens alone, or those and a sample, the last layers are computed at these alone.
    """

    name: ClassVar[str] = "hidden_cosine"
    logged_as: ClassVar[str] = "cos"

    @property
    def student_reads(self) -> Reads:
        """See `Term.student_reads`."""
        return Reads(last=self.tokens)

    @property
    def teacher_reads(self) -> Reads:
        """See `Term.teacher_reads`."""
        return Reads(last=self.tokens)

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """See `Term.check`."""
        if teacher.hidden_size != student.hidden_size:
            raise PotstillError(
                f"The cosine compares hidden states of equal width, but the teacher's are {teacher.hidden_size} wide "
                f"and the student's {student.hidden_size}: give --alpha_cos 0, or leave hidden_cosine out of losses; "
                "or replace it by hidden_mse, which learns a projection between the widths, as in "
                "--losses '{soft_targets: 5, masked_lm: 2, hidden_mse: 1}' (causal_lm for a causal model)."
            )

    def takes_part(self, number: int, mapped: bool) -> bool:
        """See `Term.takes_part`."""
        return number == 0

    def value(self, batch: Batch) -> Tensor:
        """See `Term.value`."""
        assert batch.teacher is not None
        if self.tokens == "all":
            student, teacher = batch.student.last, batch.teacher.last
        else:
            places = (batch.positions, batch.sampled if self.tokens == "sampled" else None)
            student, teacher = batch.student.last_at(*places), batch.teacher.last_at(*places)
        dtype = torch.promote_types(student.dtype, torch.float32)
        cosine = F.cosine_similarity(student.to(dtype), teacher.to(dtype), dim=-1)
        if self.tokens == "masked":  # the mean over K tokens of each block, so that all batches count alike
            return ((1 - cosine) * (batch.labels != -100)).sum() / batch.labels.numel()
        if self.tokens == "sampled":
            assert batch.sampled is not None
            weights = sample_weights(batch.positions, batch.sampled, batch.student.length)
            return ((1 - cosine) * weights).sum() / (len(cosine) * batch.student.length)
        rows = batch.student.rows
        return 1 - cosine.mean() if rows is None else rows.mean_over_tokens(1 - cosine)
