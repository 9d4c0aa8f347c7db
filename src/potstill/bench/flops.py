"""Counts the model FLOPs of a training step, and measures how fast a device multiplies matrices.

A multiplication and an addition are two operations. Only matrix products count, as is usual for utilisation. LayerNorm,
softmax, dropout and the optimiser take time, but count no model FLOPs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from potstill.corpus.masking import sampled_per_block
from potstill.objective import Objective
from potstill.student import LAST_HIDDEN, Reads, family_of, is_headless, needs_few_tokens
from potstill.student.counting import MATRICES
from potstill.training.part_clock import synchronise

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
SLOW_SECONDS = 0.5


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs per token of a training step. They depend on the block's length because of attention.

    Attributes:
        teacher_forward: FLOPs of the teacher's layers that the losses need, and of the losses' products with their
            outputs; 0 if no loss reads a teacher.
        student_forward: the same for the student. The projection onto the vocabulary counts at the share of tokens that
            a loss reads.
        student_backward: twice the forward, for the gradients of inputs and of weights.
        step: sum of the three.
    """

    teacher_forward: float
    student_forward: float
    student_backward: float
    step: float


def step_flops(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    objective: Objective,
    block_size: int,
    labelled: int,
) -> StepFlops:
    """Count the model FLOPs per token that a step needs. An implementation may compute more.

    Args:
        student: the model in training.
        teacher: the frozen model. It counts only if a loss needs it.
        objective: decides which layers are needed, and at which tokens the heads are: all, the masked ones or none.
        block_size: L, tokens of a block.
        labelled: tokens of a block that are predicted: the masked ones, or all but the last of a causal model.
    """
    sampled = sampled_per_block(block_size, labelled, objective.sampled_share)
    shares = {"none": 0.0, "masked": labelled / block_size, "sampled": (labelled + sampled) / block_size, "all": 1.0}

    def forward(model: PreTrainedModel, reads: Reads) -> float:
        return forward_flops(model, block_size, shares[reads.logits], reads, shares[reads.last])

    needed = teacher if objective.needs_teacher else None
    of_losses = objective.flops(needed.config if needed is not None else None, student.config, block_size)
    teacher_flops = 0.0 if needed is None else forward(needed, objective.teacher_reads) + of_losses.teacher
    student_flops = forward(student, objective.student_reads) + of_losses.student
    return StepFlops(teacher_flops, student_flops, 2 * student_flops, teacher_flops + 3 * student_flops)


def forward_flops(
    model: PreTrainedModel,
    block_size: int,
    head_share: float = 1.0,
    reads: Reads = LAST_HIDDEN,
    last_share: float = 1.0,
) -> float:
    """Count the FLOPs per token of a forward pass over blocks without padding.

    Args:
        model: of a known family.
        block_size: L, tokens of a block. Attention takes 4 · A · H per token and layer. A is the number of tokens
            that a token sees there (`Family.attended`), at most L; H is the hidden size.
        head_share: share of the tokens at which the language-model head is computed.
        reads: the outputs that losses read. Layers above them are not run. If only the queries, keys and values of a
            layer are read, only these count.
        last_share: share of the tokens whose last hidden states are read. Where a family knows the parts of its layers,
            keys and values are needed of all tokens, and the rest of the layer only of these.
    """
    family = family_of(model)
    depth, width = len(family.layers(model)), model.config.hidden_size
    run = reads.layers_run(depth)
    flops = sum(family.layer_flops(model, layer, block_size) for layer in range(run))
    if last_share < 1 and needs_few_tokens(model, reads):
        whole = [1, 2]  # keys and values, and queries if a loss reads them
        if any(layer % depth == depth - 1 for layer in reads.attention):
            whole.append(0)
        assert family.widths is not None
        names = [family.widths.heads_out[part] for part in whole]
        of_all = 2 * sum(family.layers(model)[-1].get_submodule(name).weight.numel() for name in names)
        flops -= (1 - last_share) * (family.layer_flops(model, depth - 1, block_size) - of_all)
    if any(layer % depth >= run for layer in reads.attention):
        flops += 2 * 3 * width * width
    vocabulary = None if is_headless(model) else family.head(model).weight
    in_layers, in_base = ({*part.modules()} for part in (family.layers(model), model.base_model))
    projections, transform = 0, 0 if vocabulary is None else vocabulary.numel()
    pooler = {*model.pooler.modules()} if getattr(model, "pooler", None) is not None else set()  # of one token a block
    for part in model.modules():
        if (
            isinstance(part, MATRICES)
            and part not in pooler
            and part not in in_layers
            and part.weight is not vocabulary
        ):
            if part in in_base:  # of the embeddings, so of every token
                projections += part.weight.numel()
            else:
                transform += part.weight.numel()
    return flops + 2 * projections + 2 * transform * head_share


def matrix_product_rate(device: torch.device, dtype: torch.dtype, repetitions: int = 10) -> float:
    """Measure the FLOP/s of a large square matrix product. A model that did only such products would reach this rate.

    Args:
        device: where to multiply. The product is smaller on a CPU (1024³) than on a GPU (8192³).
        dtype: of the matrices.
        repetitions: products in each of three timings. The fastest timing counts.
    """
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cuda"])
    left, right, product = (torch.empty(size, size, device=device, dtype=dtype) for _ in range(3))
    for matrix in (left, right):  # zeros would take less power, and therefore less time
        matrix.normal_()

    def seconds(repetitions: int) -> float:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(repetitions):
            torch.mm(left, right, out=product)
        synchronise(device)
        return time.perf_counter() - started

    seconds(1)  # warms up
    if (once := seconds(1)) > SLOW_SECONDS:  # the processor emulates the type: one product is enough
        return 2 * size**3 / once
    return 2 * size**3 * repetitions / min(seconds(repetitions) for _ in range(3))
