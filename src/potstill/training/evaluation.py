"""Student and teachers on held-out blocks, on the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from potstill.corpus.blocks import Blocks
from potstill.corpus.masking import MaskedBlocks
from potstill.objective import Ensemble
from potstill.student import family_of
from potstill.training.teachers import OneOrMore, as_tuple


@torch.no_grad()
def held_out_metrics(
    student: PreTrainedModel,
    teacher: OneOrMore,
    blocks: Blocks,
    masking: Callable[[Tensor, Tensor], MaskedBlocks],
    batch_size: int,
    max_samples: int,
    process_index: int = 0,
    num_processes: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    ensemble: Ensemble | None = None,
) -> dict[str, float]:
    """Return what student and teachers make of held-out text, in float32.

    The masks are a function of the block alone, so figures of different runs on one corpus can be compared. No random
    number is drawn, so evaluating does not change how training continues.

    Args:
        student: any masked-LM model of a known family; put in eval mode for the time.
        teacher: one or several likewise, over the same vocabulary; None leaves out what compares.
        blocks: the held-out split.
        masking: decides the masks of a batch, keyed by the number of the block.
        batch_size: blocks at a time.
        max_samples: blocks to use, spread evenly over the split.
        process_index: rank of this process, which takes every `num_processes`-th batch.
        num_processes: processes that share the work.
        reduce: sums a tensor over the processes.
        ensemble: how several teachers become one, which is what `teacher` stands for below; by equal weights if not
            given.

    Returns:
        ``loss`` (nats) and ``accuracy`` of masked LM; with a teacher also ``teacher_loss``, ``teacher_accuracy``,
        ``kl`` (teacher ‖ student, T = 1, nats) and ``agreement`` (share of equal first choices), both over the masked
        tokens, and ``cosine`` of the last hidden states over all tokens (if the widths are equal). With several
        teachers the cosine is that to the first, and ``teacher_1_loss``, ``teacher_1_accuracy`` and so on are of each.
    """
    device = student.device
    teachers = as_tuple(teacher)
    ensemble = ensemble or Ensemble.of(len(teachers))
    chosen = torch.linspace(0, len(blocks) - 1, min(max_samples, len(blocks))).round().long().tolist()
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    # Apple's GPUs have no float64; sums over a few thousand tokens bear float32 there.
    sums = torch.zeros(
        9 + 2 * len(teachers), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )
    was_training = student.training
    student.eval()
    try:
        for batch in batches[process_index::num_processes]:
            inputs = blocks.__getitems__(batch)
            masked = masking(inputs["input_ids"].to(device), inputs["sample_index"].to(device))
            # Compiled layers would be compiled anew for these shapes and this mode, which costs more than it saves.
            with torch.compiler.set_stance("force_eager"):
                sums += _batch_sums(student, teachers, ensemble, masked)
    finally:
        student.train(was_training)
    sums = reduce(sums)
    tokens, loss, correct, teacher_loss, teacher_correct, kl, agreed, all_tokens, cosine, *each = sums.tolist()
    metrics = {"loss": loss / tokens, "accuracy": correct / tokens}
    if teachers:
        metrics |= {
            "teacher_loss": teacher_loss / tokens,
            "teacher_accuracy": teacher_correct / tokens,
            "kl": kl / tokens,
            "agreement": agreed / tokens,
        }
        if all_tokens:
            metrics["cosine"] = cosine / all_tokens
    if len(teachers) > 1:
        for number in range(len(teachers)):
            metrics[f"teacher_{number + 1}_loss"] = each[2 * number] / tokens
            metrics[f"teacher_{number + 1}_accuracy"] = each[2 * number + 1] / tokens
    return metrics


def _batch_sums(
    student: PreTrainedModel, teachers: Sequence[PreTrainedModel], ensemble: Ensemble, masked: MaskedBlocks
) -> Tensor:
    """Return the sums that the metrics are quotients of: nine, and two more of each teacher."""
    input_ids, kept = masked.input_ids, masked.labels >= 0
    target = masked.labels[kept]
    hidden, log_probs = _read(student, input_ids, masked.positions, kept)
    sums = [kept.sum(), *_score(log_probs, target)]
    if not teachers:
        sums += [torch.zeros(())] * 6
    else:
        read = [_read(teacher, input_ids, masked.positions, kept) for teacher in teachers]
        teacher_hidden, teacher_log_probs = read[0][0], ensemble.log_probabilities([found for _, found in read])
        sums += [
            *_score(teacher_log_probs, target),
            F.kl_div(log_probs, teacher_log_probs, reduction="sum", log_target=True),
            (teacher_log_probs.argmax(-1) == log_probs.argmax(-1)).sum(),
        ]
        if hidden.shape == teacher_hidden.shape:
            sums += [torch.tensor(input_ids.numel()), F.cosine_similarity(hidden, teacher_hidden, dim=-1).sum()]
        else:
            sums += [torch.zeros(())] * 2
        for _, found in read:
            sums += _score(found, target)
    dtype = torch.float32 if input_ids.device.type == "mps" else torch.float64
    return torch.stack([value.to(device=input_ids.device, dtype=dtype) for value in sums])


def _score(log_probs: Tensor, target: Tensor) -> list[Tensor]:
    """Return the sum of the losses and the number of right first choices, of (N, V) log-probabilities."""
    return [F.nll_loss(log_probs, target, reduction="sum"), (log_probs.argmax(-1) == target).sum()]


def _read(model: PreTrainedModel, input_ids: Tensor, positions: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, L, H) hidden states and (N, V) log-probabilities at the N masked tokens, both float32."""
    family = family_of(model)
    hidden, head = family.encode(model, input_ids).last, family.head(model)
    masked = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))[kept]
    logits = F.linear(head.transform(masked), head.weight, head.bias)
    return hidden.float(), logits.float().log_softmax(-1)
