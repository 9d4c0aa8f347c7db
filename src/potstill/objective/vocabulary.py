"""The losses that look at the vocabulary: from hidden states and heads to KL and masked-LM cross-entropy.

All that is costly in a distillation step besides the encoders happens behind this one function, which takes hidden
states rather than logits, so that logits need never exist all at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.objective.chunks import Projection, VocabularyPass
from potstill.objective.softmax import SoftmaxOptions
from potstill.student import VocabularyHead

# Logits held at once, in bytes: on a GPU so many that the matrix products are large (docs/performance.md), elsewhere so
# few that they stay near the processor.
LOGITS_BYTES = {"cuda": 2**30}
LOGITS_BYTES_ELSEWHERE = 2**26
ALIGNMENT = {"cuda": 64}  # what the vocabulary is padded to a multiple of


def vocabulary_losses(
    student_hidden: Tensor,
    student_head: VocabularyHead,
    teacher_hidden: Tensor | None,
    teacher_head: VocabularyHead | None,
    positions: Tensor,
    labels: Tensor,
    *,
    alpha_ce: float,
    alpha_mlm: float,
    temperature: float,
    soft_targets: str,
) -> dict[str, Tensor]:
    """Return `loss`, alpha_ce · ce + alpha_mlm · mlm, and for the log `ce` and `mlm`, each a float32 scalar.

    Only `loss` has a gradient, which is computed in the same pass. Logits are only computed at the positions that a
    loss reads: every token when the soft targets are of `all` tokens, otherwise the masked ones.

    Args:
        student_hidden: (B, L, H).
        student_head: turns them into logits over V tokens.
        teacher_hidden: (B, L, H'); None only if alpha_ce is 0.
        teacher_head: the teacher's head, over the same vocabulary.
        positions: (B, K) masked positions.
        labels: (B, K) original tokens there, -100 where there is none to predict.
        alpha_ce: weight of the soft targets, 0 to leave them out.
        alpha_mlm: weight of masked LM, 0 to leave it out.
        temperature: T of the soft targets; the loss is multiplied by T².
        soft_targets: `all` or `masked`.
    """
    every_token = alpha_ce > 0 and soft_targets == "all"
    if every_token:
        row_labels = labels.new_full(student_hidden.shape[:2], -100).scatter(1, positions, labels)
    else:
        student_hidden, row_labels = _at(student_hidden, positions), labels
    device = student_hidden.device.type
    dtype = student_hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    teacher = None
    if alpha_ce > 0:
        assert teacher_hidden is not None
        assert teacher_head is not None
        with torch.no_grad():
            targets = teacher_head.transform(teacher_hidden if every_token else _at(teacher_hidden, positions))
            teacher = Projection(targets.flatten(0, 1), teacher_head.weight, teacher_head.bias)
    # Sums over rows become averages over counts that every batch has: see DistillationObjective.
    soft = alpha_ce * temperature**2 / row_labels.numel()
    hard = alpha_mlm / labels.numel()
    # The gradient with respect to logits is kept large enough that float16 does not lose the many small ones.
    unit = max(soft / temperature, hard) / (1024 if dtype == torch.float16 else 1)
    hidden = student_head.transform(student_hidden).flatten(0, 1)
    with torch.autocast(device, enabled=False):  # the pass chooses its own types
        total, sums = VocabularyPass.apply(
            hidden,
            student_head.weight,
            student_head.bias,
            teacher,
            row_labels.flatten(),
            SoftmaxOptions(temperature, soft / temperature / unit, hard / unit, soft_targets == "masked", True),
            dtype,
            _chunk_size(row_labels.numel(), len(student_head.weight), dtype, device),
            ALIGNMENT.get(device, 1),
        )
    losses = {"loss": total * unit}
    if alpha_ce > 0:
        losses["ce"] = sums[0] * (temperature**2 / row_labels.numel())
    if alpha_mlm > 0:
        losses["mlm"] = sums[1] / labels.numel()
    return losses


def _chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: str) -> int:
    """Return how many tokens to take at a time, so that both heads' logits stay small and chunks are alike."""
    limit = LOGITS_BYTES.get(device, LOGITS_BYTES_ELSEWHERE) // (2 * vocab_size * dtype.itemsize)
    chunks = math.ceil(tokens / max(limit, 1))
    return math.ceil(tokens / chunks / 8) * 8


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Return (B, K, D): the rows of (B, L, D) at (B, K) positions."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
