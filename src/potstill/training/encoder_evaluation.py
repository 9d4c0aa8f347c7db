"""How near a student without a head is to its teachers on held-out text."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.corpus.blocks import Blocks
from potstill.corpus.labelling import Labelling
from potstill.objective import HiddenMSE
from potstill.student import family_of
from potstill.training.evaluation import evaluated_batches
from potstill.training.step import DistillationStep


@torch.no_grad()
def encoder_metrics(
    step: DistillationStep,
    blocks: Blocks,
    labelling: Labelling,
    batch_size: int,
    max_samples: int,
    process_index: int = 0,
    num_processes: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> dict[str, float]:
    """Return how near a student is to its teachers on held-out text, computed in float32.

    Args:
        step: with student, teachers and losses. The student is in eval mode during the call.
        blocks: the held-out split.
        labelling: makes the batch that the models read of its token ids and its sample indices.
        batch_size: blocks per batch.
        max_samples: largest number of blocks to use, spread evenly over the split.
        process_index: rank of this process, which takes every `num_processes`-th batch.
        num_processes: processes that share the work.
        reduce: sums a tensor over the processes.

    Returns:
        ``loss``, the weighted sum of the losses; and ``cosine`` of the last hidden states of student and first teacher,
        the mean over all tokens. If their widths differ, the student's states first go through the projection that
        `hidden_mse` trains for its last layer. There is no cosine without such a projection.
    """
    device = step.student.device
    sums = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    was_training, replays = step.student.training, step.replays
    step.student.eval()
    step.replays = False
    try:
        for inputs in evaluated_batches(blocks, batch_size, max_samples, process_index, num_processes):
            read = labelling(inputs["input_ids"].to(device), inputs["sample_index"].to(device))
            # Compiled layers would be compiled again for these shapes and this mode. That costs more than it saves.
            with torch.compiler.set_stance("force_eager"):
                loss = step(read.input_ids, read.positions, read.labels)["loss"]
                cosine, tokens = _cosine(step, read.input_ids)
            number = len(read.input_ids)
            sums += torch.stack([loss * number, loss.new_tensor(number), cosine, loss.new_tensor(tokens)]).to(sums)
    finally:
        step.student.train(was_training)
        step.replays = replays
    loss, number, cosine, tokens = reduce(sums).tolist()
    return {"loss": loss / number, **({"cosine": cosine / tokens} if tokens else {})}


def _cosine(step: DistillationStep, input_ids: Tensor) -> tuple[Tensor, int]:
    """Return the sum of the cosines of the last hidden states over all tokens, and their number, 0 without a map."""
    project = _projection(step)
    if step.teacher is None or project is None:
        return torch.zeros((), device=input_ids.device), 0
    student, teacher = (
        family_of(model).encode(model, input_ids).last.float() for model in (step.student, step.teacher)
    )
    return F.cosine_similarity(project(student), teacher, dim=-1).sum(), input_ids.numel()


def _projection(step: DistillationStep) -> Callable[[Tensor], Tensor] | None:
    """Return what makes last hidden states of the student as wide as the first teacher's; None if nothing does."""
    student, teacher = step.student.config, None if step.teacher is None else step.teacher.config
    if teacher is None or student.hidden_size == teacher.hidden_size:
        return lambda hidden: hidden
    depths = student.num_hidden_layers, teacher.num_hidden_layers
    for term in step.objective.terms:
        if isinstance(term, HiddenMSE) and term.name in step.objective_modules:
            for number, pair in enumerate(term.layers.items()):
                if all(layer % depth == depth - 1 for layer, depth in zip(pair, depths, strict=True)):
                    return step.objective_modules[term.name][number]
    return None
