"""The losses of sentence encoders: they compare the embeddings of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from potstill.objective.term import Batch, Flops, Term
from potstill.student import Reads


def embedding_width(config: PreTrainedConfig) -> int:
    """Return D, the width of the embeddings of an encoder with this config."""
    return getattr(config, "embedding_width", config.hidden_size)


@dataclass(frozen=True, kw_only=True)
class EmbeddingTerm(Term):
    """A loss of the embeddings of N texts, student (N, D) against teacher (N, D').

    If the widths differ, a linear map from the student's to the teacher's is trained with the student. It is in
    checkpoints and not in the saved model.
    """

    @property
    def student_reads(self) -> Reads:
        """See `Term.student_reads`."""
        return Reads(pooled=True)

    @property
    def teacher_reads(self) -> Reads:
        """See `Term.teacher_reads`."""
        return Reads(pooled=True)

    def module(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> nn.Module | None:
        """See `Term.module`."""
        widths = embedding_width(student), embedding_width(teacher)
        return None if widths[0] == widths[1] else nn.Linear(*widths, bias=False)

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """See `Term.flops`. The products are one for each text, so they are next to nothing for each token."""
        return Flops()

    def value(self, batch: Batch) -> Tensor:
        """See `Term.value`: the mean over the texts of the batch."""
        assert batch.teacher is not None
        assert batch.student.rows is not None
        assert batch.student.pooled is not None
        assert batch.teacher.pooled is not None
        dtype = torch.promote_types(batch.student.pooled.dtype, torch.float32)
        student, teacher = batch.student.pooled.to(dtype), batch.teacher.pooled.to(dtype)
        if batch.trained is not None:
            student = batch.trained(student)
        return batch.student.rows.mean_over_texts(self.of_texts(student, teacher, batch.student.rows.filled))

    def of_texts(self, student: Tensor, teacher: Tensor, filled: Tensor) -> Tensor:
        """Return the loss (N,) of each text.

        Args:
            student: (N, D) embeddings.
            teacher: (N, D) embeddings.
            filled: (N,) bool, false where there is no text.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EmbeddingCosine(EmbeddingTerm):
    """Mean over the texts of 1 − cos(student, teacher) of the embeddings."""

    name: ClassVar[str] = "embedding_cosine"

    def of_texts(self, student: Tensor, teacher: Tensor, filled: Tensor) -> Tensor:
        """See `EmbeddingTerm.of_texts`."""
        return 1 - F.cosine_similarity(student, teacher, dim=-1)


@dataclass(frozen=True, kw_only=True)
class EmbeddingMSE(EmbeddingTerm):
    """Mean over the texts of the squared distance of the embeddings (Reimers and Gurevych 2020).

    It is summed over the dimensions, so that its size does not depend on the width.
    """

    name: ClassVar[str] = "embedding_mse"

    def of_texts(self, student: Tensor, teacher: Tensor, filled: Tensor) -> Tensor:
        """See `EmbeddingTerm.of_texts`."""
        return (student - teacher).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class Similarities(EmbeddingTerm):
    """KL(teacher ‖ student) of how similar each text is to the others of its micro-batch (Passalis and Tefas 2018).

    The similarities of a text to the others are cosines. A softmax of `scale` times the cosines makes them a
    distribution. Widths may differ.

    Attributes:
        scale: inverse of the temperature.
    """

    name: ClassVar[str] = "similarities"
    scale: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("scale", lambda value: 0 < value < float("inf"), "a number above 0")

    def module(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> nn.Module | None:
        """See `Term.module`: similarities have no width."""
        return None

    def of_texts(self, student: Tensor, teacher: Tensor, filled: Tensor) -> Tensor:
        """See `EmbeddingTerm.of_texts`."""
        left_out = ~filled[None, :] | torch.eye(len(filled), dtype=torch.bool, device=filled.device)
        log_p, log_q = (self._log_distribution(embeddings, left_out) for embeddings in (teacher, student))
        return torch.where(left_out, 0, log_p.exp() * (log_p - log_q)).sum(-1)

    def _log_distribution(self, embeddings: Tensor, left_out: Tensor) -> Tensor:
        unit = F.normalize(embeddings, dim=-1)
        with torch.autocast(embeddings.device.type, enabled=False):  # 16 bits are too few for cosines near 1
            logits = self.scale * (unit @ unit.T)
        return logits.masked_fill(left_out, -1e4).log_softmax(-1)
