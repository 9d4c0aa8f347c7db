"""Evaluation of student and teachers on held-out blocks under the same masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from potstill.corpus.blocks import Blocks
from potstill.corpus.labelling import LabelledBlocks, Labelling
from potstill.objective import Ensemble
from potstill.precision.simulated import as_exported
from potstill.student import family_of
from potstill.student.padded_vocabulary import known_head
from potstill.training.teachers import OneOrMore, as_tuple


@torch.no_grad()
def held_out_metrics(
    student: PreTrainedModel,
    teacher: OneOrMore,
    blocks: Blocks,
    labelling: Labelling,
    batch_size: int,
    max_samples: int,
    process_index: int = 0,
    num_processes: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    ensemble: Ensemble | None = None,
    in_step: bool = False,
) -> dict[str, float]:
    """Return the metrics of student and teachers on held-out text, computed in float32.

    The masks depend on the block alone, so results of different runs on one corpus can be compared. The evaluation
    draws no random numbers, so it does not change how training continues.

    Args:
        student: any language model of a known family. It is in eval mode during the call.
        teacher: one or several language models with the same vocabulary; None leaves out the metrics that compare.
        blocks: the held-out split.
        labelling: labels a batch, given its token ids and its sample indices.
        batch_size: blocks per batch.
        max_samples: largest number of blocks to use, spread evenly over the split.
        process_index: rank of this process, which takes every `num_processes`-th batch.
        num_processes: processes that share the work.
        reduce: sums a tensor over the processes.
        ensemble: how several teachers are averaged; with equal weights if not given.
        in_step: whether all processes must run the models equally often, because the models are sharded.

    Returns:
        ``loss`` (nats) and ``accuracy`` of masked LM, or of causal LM with its ``perplexity`` = exp(loss). With a
        teacher also ``teacher_loss``, ``teacher_accuracy`` (and ``teacher_perplexity``), ``kl`` (teacher ‖ student,
        T = 1, nats) and ``agreement`` (share of equal first choices), both over the predicted tokens, and ``cosine`` of
        the last hidden states over all tokens (if the widths are equal). With several teachers these are metrics of
        their mean, except that the cosine is to the first one. Then each also has its own ``teacher_1_loss``,
        ``teacher_1_accuracy`` (and ``teacher_1_perplexity``) and so on.
    """
    device = student.device
    teachers = as_tuple(teacher)
    ensemble = ensemble or Ensemble.of(len(teachers))
    # Apple's GPUs have no float64. Float32 is precise enough there for sums over a few thousand tokens.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(9 + 2 * len(teachers), dtype=dtype, device=device)
    was_training = student.training
    student.eval()
    try:
        batches = evaluated_batches(blocks, batch_size, max_samples, process_index, num_processes)
        of_all = -(-min(len(blocks), max_samples) // batch_size)
        own = len(range(process_index, of_all, num_processes))
        more = -(-of_all // num_processes) - own if in_step else 0
        for number, inputs in enumerate(chain(batches, (blocks.__getitems__([0]) for _ in range(more)))):
            labelled = labelling(inputs["input_ids"].to(device), inputs["sample_index"].to(device))
            # Compiled layers would be compiled again for these shapes and this mode. That costs more than it saves.
            with torch.compiler.set_stance("force_eager"):
                of_batch = _batch_sums(student, teachers, ensemble, labelled)
            if number < own:
                sums += of_batch
    finally:
        student.train(was_training)
    sums = reduce(sums)
    tokens, loss, correct, teacher_loss, teacher_correct, kl, agreed, all_tokens, cosine, *each = sums.tolist()
    metrics = {"loss": loss / tokens, "accuracy": correct / tokens}
    causal = family_of(student).causal
    if causal:
        metrics["perplexity"] = perplexity(loss / tokens)
    if teachers:
        metrics |= {
            "teacher_loss": teacher_loss / tokens,
            "teacher_accuracy": teacher_correct / tokens,
            "kl": kl / tokens,
            "agreement": agreed / tokens,
        }
        if causal:
            metrics["teacher_perplexity"] = perplexity(teacher_loss / tokens)
        if all_tokens:
            metrics["cosine"] = cosine / all_tokens
    if len(teachers) > 1:
        for number in range(len(teachers)):
            teacher_loss, teacher_correct = each[2 * number : 2 * number + 2]
            metrics[f"teacher_{number + 1}_loss"] = teacher_loss / tokens
            metrics[f"teacher_{number + 1}_accuracy"] = teacher_correct / tokens
            if causal:
                metrics[f"teacher_{number + 1}_perplexity"] = perplexity(teacher_loss / tokens)
    return metrics


def evaluated_blocks(blocks: int, max_samples: int) -> list[int]:
    """Return the numbers of the blocks that an evaluation reads, in ascending order, spread evenly over the split.

    Args:
        blocks: number of blocks of the split.
        max_samples: largest number of blocks to use.
    """
    return torch.linspace(0, blocks - 1, min(max_samples, blocks)).round().long().tolist()


def evaluated_batches(
    blocks: Blocks, batch_size: int, max_samples: int, process_index: int = 0, num_processes: int = 1
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches that a process reads in an evaluation; see `held_out_metrics` for the arguments."""
    chosen = evaluated_blocks(len(blocks), max_samples)
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    for batch in batches[process_index::num_processes]:
        yield blocks.__getitems__(batch)


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where that is more than a float can hold."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _batch_sums(
    student: PreTrainedModel, teachers: Sequence[PreTrainedModel], ensemble: Ensemble, labelled: LabelledBlocks
) -> Tensor:
    """Return the sums from which the metrics are computed as quotients: nine, and two more for each teacher."""
    input_ids, target = labelled.input_ids, labelled.labels[labelled.labels >= 0]
    hidden, log_probs = predictions(student, labelled)
    sums = [torch.tensor(target.numel()), *_score(log_probs, target)]
    if not teachers:
        sums += [torch.zeros(())] * 6
    else:
        read = [predictions(teacher, labelled) for teacher in teachers]
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
    """Return the summed loss of (N, V) log-probabilities, and the number of correct first choices."""
    return [F.nll_loss(log_probs, target, reduction="sum"), (log_probs.argmax(-1) == target).sum()]


def predictions(model: PreTrainedModel, labelled: LabelledBlocks) -> tuple[Tensor, Tensor]:
    """Return the (B, L, H) last hidden states and the (N, V) log-probabilities at the N labelled tokens, both float32.

    Args:
        model: any language model of a known family.
        labelled: B blocks of L tokens, with N labels.
    """
    family = family_of(model)
    hidden, head = family.encode(model, labelled.input_ids).last, as_exported(model, known_head(model))
    positions = labelled.positions[..., None].expand(-1, -1, hidden.shape[-1])
    masked = hidden.gather(1, positions)[labelled.labels >= 0]
    logits = F.linear(head.transform(masked), head.weight, head.bias)
    return hidden.float(), logits.float().log_softmax(-1)
