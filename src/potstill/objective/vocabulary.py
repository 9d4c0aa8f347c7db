"""The losses that look at the vocabulary: from hidden states and heads to KL and masked-LM cross-entropy.

This is the plain version: it holds the logits of every selected token. All that is costly in a distillation step
besides the encoders happens behind this one function, which takes hidden states rather than logits, so that a faster
one need not change anything around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.student import VocabularyHead


def vocabulary_losses(
    student_hidden: Tensor,
    student_head: VocabularyHead,
    teacher_hidden: Tensor | None,
    teacher_head: VocabularyHead | None,
    positions: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    soft_targets: str,
    masked_lm: bool,
) -> dict[str, Tensor]:
    """Return ``ce`` (if there is a teacher) and ``mlm`` (if asked for), each a float32 scalar.

    Logits are only computed at the positions that a loss reads: every token when the soft targets are of ``all``
    tokens, otherwise the masked ones.

    Args:
        student_hidden: (B, L, H).
        student_head: turns them into logits over V tokens.
        teacher_hidden: (B, L, H') or None.
        teacher_head: the teacher's head, over the same vocabulary.
        positions: (B, K) masked positions.
        labels: (B, K) original tokens there, -100 where there is none to predict.
        temperature: T of the soft targets; the loss is multiplied by T².
        soft_targets: ``all`` or ``masked``.
        masked_lm: whether to compute ``mlm``.
    """
    soft = teacher_hidden is not None and teacher_head is not None
    every_token = soft and soft_targets == "all"
    if not every_token:
        student_hidden = _at(student_hidden, positions)
    # Logits are made at the temperature of the soft targets, the larger share of them, rather than divided afterwards:
    # on a CPU a pass over the vocabulary costs as much as the matrix product that made it.
    scale = temperature if soft else 1.0
    student_logits = _logits(student_hidden, student_head, scale)

    losses: dict[str, Tensor] = {}
    if teacher_hidden is not None and teacher_head is not None:
        with torch.no_grad():
            teacher_hidden = teacher_hidden if every_token else _at(teacher_hidden, positions)
            target = F.log_softmax(_logits(teacher_hidden, teacher_head, scale), dim=-1)
            probabilities = target.exp()
            negative_entropy = torch.linalg.vecdot(probabilities, target)
        kl = negative_entropy - torch.linalg.vecdot(probabilities, F.log_softmax(student_logits, dim=-1))
        if not every_token:
            kl = kl * (labels >= 0)
        losses["ce"] = kl.mean() * temperature**2
    if masked_lm:
        masked_logits = (_at(student_logits, positions) if every_token else student_logits) * scale
        # A sum over the labels there are, over the count that every batch has: see DistillationObjective.
        losses["mlm"] = F.cross_entropy(masked_logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.numel()
    return losses


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Return (B, K, D): the rows of (B, L, D) at (B, K) positions."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def _logits(hidden: Tensor, head: VocabularyHead, temperature: float) -> Tensor:
    """Return logits / temperature, float32 or wider: a softmax over tens of thousands of words does not fit 8 bits."""
    bias = None if head.bias is None else head.bias / temperature
    logits = F.linear(head.transform(hidden) / temperature, head.weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
