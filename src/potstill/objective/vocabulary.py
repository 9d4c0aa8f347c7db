"""The term that reads logits: soft targets, masked LM and MSE of logits, from hidden states and heads.

Besides the encoders, this term is the costly part of a distillation step. It takes hidden states instead of logits, so
that all logits need never be in memory at once, and computes all its losses in one pass.
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
from potstill.objective.term import Batch, Encoded, Term, sample_weights
from potstill.student import Reads

# Bytes of logits in memory at once. On a GPU they are many, for large matrix products. Elsewhere
# they are few, so that they stay in the cache of the processor.
LOGITS_BYTES = {"cuda": 2**30}
LOGITS_BYTES_ELSEWHERE = 2**27
ALIGNMENT = {"cuda": 64, "cpu": 64}  # the vocabulary is padded to a multiple of this
PADDED_FROM = {"cpu": 256}  # for fewer tokens the padded copy of the weights takes longer than it saves


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Term):
    """Soft targets, masked LM and the MSE of logits, with their gradients, in one pass over the vocabulary.

    Logits are only computed at the tokens that a loss reads: all tokens, the masked ones, or those and a random sample
    of the others.

    Attributes:
        weight: always 1; each part has its own weight.
        soft_targets: None to leave them out.
        hard_labels: masked LM or causal LM; None to leave it out.
        logits_mse: None to leave it out.

    Raises:
        PotstillError: the soft targets are taken at a sample although another loss needs the logits of all tokens.
    """

    name: ClassVar[str] = "vocabulary"
    compiled: ClassVar[bool] = False
    weight: float = field(default=1.0, init=False)
    soft_targets: SoftTargets | None = None
    hard_labels: MaskedLM | None = None
    logits_mse: LogitsMSE | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling and self.student_reads.logits == "all":
            raise PotstillError(
                "losses: soft_targets at sampled tokens save no time, because logits_mse needs the logits of all "
                "tokens: give tokens: all to soft_targets, or tokens: masked to logits_mse."
            )

    @property
    def sampling(self) -> bool:
        """Whether the soft targets are taken at a random sample of the tokens."""
        return self.soft_targets is not None and self.soft_targets.tokens == "sampled"

    def options(self) -> dict[str, Any]:
        """Return the options of each part, by the name of the part."""
        parts = (self.soft_targets, self.hard_labels, self.logits_mse)
        return {part.name: part.options() for part in parts if part is not None}

    @property
    def student_reads(self) -> Reads:
        """See `Term.student_reads`."""
        return self.teacher_reads | Reads("none" if self.hard_labels is None else "masked")

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
        """Return the weighted sum of the parts, and for the log `ce`, `mlm` or `clm`, and `logits_mse`.

        Each is a float32 scalar. Only the sum has a gradient. It is computed in the same pass. The student is compared
        with the mean of the teachers that `ensemble` describes. The MSE is always to the mean of their logits.
        """
        soft_targets, hard_labels, logits_mse = self.soft_targets, self.hard_labels, self.logits_mse
        if logits_mse is not None and len(batches) > 1 and ensemble.mean != "logits":
            of_logits = replace(ensemble, mean="logits")
            if soft_targets is None:
                ensemble = of_logits
            else:  # one pass compares with one matrix of logits, but these two losses need two
                first, logged = replace(self, logits_mse=None).losses(batches, value, ensemble)
                second, logged_too = Vocabulary(logits_mse=logits_mse).losses(batches, value, of_logits)
                return first + second, logged | logged_too
        batch = batches[0]
        positions, labels, head = batch.positions, batch.labels, batch.student.head
        assert head is not None
        length, weights = batch.student.length, None
        if self.sampling:
            assert batch.sampled is not None
            row_labels = torch.cat([labels, torch.full_like(batch.sampled, -100)], 1)
            weights = sample_weights(positions, batch.sampled, length).flatten()
        elif self.student_reads.logits == "all":
            row_labels = labels.new_full((len(labels), length), -100).scatter(1, positions, labels)
        else:
            row_labels = labels
        hidden = self._rows(batch.student, batch)
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        temperature, soft, hard, squared = 1.0 if soft_targets is None else soft_targets.temperature, 0.0, 0.0, 0.0
        teacher: Targets | None = None
        if self.teacher_reads:
            with torch.no_grad():
                teacher = ensemble.targets([self._projection(one) for one in batches], temperature)
        # Sums over rows become averages over counts that are the same for every batch: see `Term.value`.
        every = len(labels) * length
        counts = {"all": every, "masked": labels.numel(), "sampled": every}
        if soft_targets is not None:
            soft = soft_targets.weight * temperature**2 / counts[soft_targets.tokens]
        if hard_labels is not None:
            hard = hard_labels.weight / counts["masked"]
        if logits_mse is not None:
            squared = logits_mse.weight / counts[logits_mse.tokens]
        # The gradients with respect to logits are scaled up, so that float16 does not lose the many small ones.
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
        matrices = 2 if teacher is None else 1 + teacher.matrices
        with torch.autocast(device, enabled=False):  # the pass chooses its own types
            total, sums = VocabularyPass.apply(
                rows,
                head.weight,
                head.bias,
                teacher,
                row_labels.flatten(),
                options,
                dtype,
                _chunk_size(row_labels.numel(), len(head.weight), dtype, device, matrices),
                _alignment(row_labels.numel(), device),
                weights,
            )
        logged = {}
        if soft_targets is not None:
            logged["ce"] = sums[0] * (temperature**2 / counts[soft_targets.tokens])
        if hard_labels is not None:
            logged[hard_labels.logged_as] = sums[1] / counts["masked"]
        if logits_mse is not None:
            logged["logits_mse"] = sums[2] / counts[logits_mse.tokens]
        return total * unit, logged

    def _rows(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Return the last hidden states (B, R, H) of the tokens whose logits are computed."""
        if self.student_reads.logits == "all":
            return encoded.last
        return encoded.last_at(batch.positions, batch.sampled if self.sampling else None)

    def _projection(self, batch: Batch) -> Projection:
        """Return the projection that gives the teacher's logits of these tokens."""
        assert batch.teacher is not None
        head = batch.teacher.head
        assert head is not None
        transformed = head.transform(self._rows(batch.teacher, batch))
        return Projection(transformed.flatten(0, 1), head.weight, head.bias)


def check_vocabularies(teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """Check that teacher and student have vocabularies of the same size.

    Raises:
        PotstillError: the sizes differ.
    """
    if teacher.vocab_size != student.vocab_size:
        raise PotstillError(
            f"Teacher and student must share one vocabulary, but the teacher has {teacher.vocab_size} entries "
            f"and the student {student.vocab_size}: take a student that was made from this teacher."
        )


def _chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: str, matrices: int = 2) -> int:
    """Return the number of tokens in a chunk, so that all matrices of logits stay small and chunks have similar sizes.

    Args:
        tokens: number of tokens in all chunks.
        vocab_size: V.
        dtype: type of the logits.
        device: type of the device.
        matrices: number of matrices of logits in memory at once: the student's and those of its targets.
    """
    limit = LOGITS_BYTES.get(device, LOGITS_BYTES_ELSEWHERE) // (matrices * vocab_size * dtype.itemsize)
    chunks = math.ceil(tokens / max(limit, 1))
    return math.ceil(tokens / chunks / 8) * 8


def _alignment(tokens: int, device: str) -> int:
    """Return the number of which the vocabulary is padded to a multiple, so that the products are fast."""
    return ALIGNMENT.get(device, 1) if tokens >= PADDED_FROM.get(device, 0) else 1
