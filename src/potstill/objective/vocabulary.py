"""The term that looks at the vocabulary: from hidden states and heads to soft targets, masked LM and logits' MSE.

All that is costly in a distillation step besides the encoders happens here. The term takes hidden states rather than
logits, so that logits need never exist all at once, and computes all its losses in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.chunks import Projection, Targets, VocabularyPass
from potstill.objective.ensemble import Ensemble
from potstill.objective.parts import LogitsMSE, MaskedLM, SoftTargets
from potstill.objective.softmax import SoftmaxOptions
from potstill.objective.term import Batch, Term
from potstill.student import Reads

# Logits held at once, in bytes: on a GPU so many that the matrix products are large (docs/performance.md), elsewhere so
# few that they stay near the processor.
LOGITS_BYTES = {"cuda": 2**30}
LOGITS_BYTES_ELSEWHERE = 2**26
ALIGNMENT = {"cuda": 64}  # what the vocabulary is padded to a multiple of


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Term):
    """Soft targets, masked LM and the MSE of logits, in one pass over the vocabulary with their gradients.

    Logits are only computed at the tokens that a loss reads: all of them, or the masked ones.

    Attributes:
        weight: always 1; each part has a weight of its own.
        soft_targets: None to leave them out.
        masked_lm: likewise.
        logits_mse: likewise.
    """

    name: ClassVar[str] = "vocabulary"
    compiled: ClassVar[bool] = False
    weight: float = field(default=1.0, init=False)
    soft_targets: SoftTargets | None = None
    masked_lm: MaskedLM | None = None
    logits_mse: LogitsMSE | None = None

    def options(self) -> dict[str, Any]:
        """Return the options of each part, by the name of the part."""
        parts = (self.soft_targets, self.masked_lm, self.logits_mse)
        return {part.name: part.options() for part in parts if part is not None}

    @property
    def student_reads(self) -> Reads:
        """See `Term.student_reads`."""
        return self.teacher_reads | Reads("none" if self.masked_lm is None else "masked")

    @property
    def teacher_reads(self) -> Reads:
        """See `Term.teacher_reads`."""
        reads = Reads()
        for part in (self.soft_targets, self.logits_mse):
            reads |= Reads("none" if part is None else part.tokens)
        return reads

    @property
    def comparing(self) -> list[str]:
        """See `Term.comparing`."""
        return [part.name for part in (self.soft_targets, self.logits_mse) if part is not None]

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """See `Term.check`."""
        check_vocabularies(teacher, student)

    def value(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the parts: see `losses`."""
        return self.losses([batch], self.value, Ensemble())[0]

    def losses(
        self, batches: Sequence[Batch], value: Callable[[Batch], Tensor], ensemble: Ensemble
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the parts, and for the log `ce`, `mlm` and `logits_mse`, each a float32 scalar.

        Only the sum has a gradient, which is computed in the same pass. Several teachers are compared with as the one
        that `ensemble` makes of them. The MSE is that to the mean of their logits.
        """
        soft_targets, masked_lm, logits_mse = self.soft_targets, self.masked_lm, self.logits_mse
        if logits_mse is not None and len(batches) > 1 and ensemble.mean != "logits":
            of_logits = replace(ensemble, mean="logits")
            if soft_targets is None:
                ensemble = of_logits
            else:  # a pass compares with one matrix of logits, and the two losses want two
                first, logged = replace(self, logits_mse=None).losses(batches, value, ensemble)
                second, also = Vocabulary(logits_mse=logits_mse).losses(batches, value, of_logits)
                return first + second, logged | also
        batch = batches[0]
        positions, labels, head = batch.positions, batch.labels, batch.student.head
        hidden = batch.student.last
        every_token = self.student_reads.logits == "all"
        if every_token:
            row_labels = labels.new_full(hidden.shape[:2], -100).scatter(1, positions, labels)
        else:
            hidden, row_labels = _at(hidden, positions), labels
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        temperature, soft, hard, squared = 1.0, 0.0, 0.0, 0.0
        if soft_targets is not None:
            temperature = soft_targets.temperature
        teacher: Targets | None = None
        if self.teacher_reads:
            with torch.no_grad():
                teacher = ensemble.targets([_projection(one, every_token) for one in batches], temperature)
        # Sums over rows become averages over counts that every batch has: see `Term.value`.
        counts = {"all": row_labels.numel(), "masked": labels.numel()}
        if soft_targets is not None:
            soft = soft_targets.weight * temperature**2 / counts[soft_targets.tokens]
        if masked_lm is not None:
            hard = masked_lm.weight / counts["masked"]
        if logits_mse is not None:
            squared = logits_mse.weight / counts[logits_mse.tokens]
        # The gradient with respect to logits is kept large enough that float16 does not lose the many small ones.
        unit = max(soft / temperature, hard, squared) / (1024 if dtype == torch.float16 else 1)
        options = SoftmaxOptions(
            temperature,
            soft / temperature / unit,
            hard / unit,
            soft_targets is not None and soft_targets.tokens == "masked",
            True,
            "forward_kl" if soft_targets is None else soft_targets.divergence,
            squared / unit,
            logits_mse is not None and logits_mse.tokens == "masked",
        )
        rows = head.transform(hidden).flatten(0, 1)
        with torch.autocast(device, enabled=False):  # the pass chooses its own types
            total, sums = VocabularyPass.apply(
                rows,
                head.weight,
                head.bias,
                teacher,
                row_labels.flatten(),
                options,
                dtype,
                _chunk_size(
                    row_labels.numel(), len(head.weight), dtype, device, 1 + (teacher.matrices if teacher else 1)
                ),
                ALIGNMENT.get(device, 1),
            )
        logged = {}
        if soft_targets is not None:
            logged["ce"] = sums[0] * (temperature**2 / counts[soft_targets.tokens])
        if masked_lm is not None:
            logged["mlm"] = sums[1] / counts["masked"]
        if logits_mse is not None:
            logged["logits_mse"] = sums[2] / counts[logits_mse.tokens]
        return total * unit, logged


def check_vocabularies(teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """Check that teacher and student have one vocabulary.

    Raises:
        PotstillError: they have not.
    """
    if teacher.vocab_size != student.vocab_size:
        raise PotstillError(
            f"Teacher and student must share one vocabulary, but the teacher has {teacher.vocab_size} entries "
            f"and the student {student.vocab_size}."
        )


def _projection(batch: Batch, every_token: bool) -> Projection:
    """Return what the teacher's logits are made of, at every token or at the masked ones."""
    assert batch.teacher is not None
    head, seen = batch.teacher.head, batch.teacher.last
    hidden = head.transform(seen if every_token else _at(seen, batch.positions))
    return Projection(hidden.flatten(0, 1), head.weight, head.bias)


def _chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: str, matrices: int = 2) -> int:
    """Return how many tokens to take at a time, so that so many matrices of logits stay small and chunks are alike."""
    limit = LOGITS_BYTES.get(device, LOGITS_BYTES_ELSEWHERE) // (matrices * vocab_size * dtype.itemsize)
    chunks = math.ceil(tokens / max(limit, 1))
    return math.ceil(tokens / chunks / 8) * 8


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Return (B, K, D): the rows of (B, L, D) at (B, K) positions."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
