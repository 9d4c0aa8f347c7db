"""Model FLOPs of a training step, by count, and the rate at which a device multiplies matrices.

A multiplication and an addition are two operations. Only matrix products count, as is the custom for utilisation:
what a step computes besides (LayerNorm, softmax, dropout, the optimiser) is time it spends without model FLOPs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.bench.clock import synchronise
from potstill.corpus.masking import masked_per_block
from potstill.objective import Objective
from potstill.student import LAST_HIDDEN, Reads, family_of

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
SLOW_SECONDS = 0.5


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs per token of a training step; attention makes them depend on the block's length.

    Attributes:
        teacher_forward: of the layers whose output a loss reads, and of what losses make of it; 0 where no loss
            compares with a teacher.
        student_forward: likewise, with the projection onto the vocabulary at the share of tokens that a loss reads.
        student_backward: twice the forward, for the gradients of inputs and of weights.
        step: their sum.
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
    mlm_probability: float,
) -> StepFlops:
    """Count the model FLOPs per token that a step needs, whatever an implementation computes besides.

    Args:
        student: the model in training.
        teacher: the frozen one; it only counts if a loss needs it.
        objective: decides which layers are needed, and at which tokens the heads are: all, the masked ones or none.
        block_size: L, tokens of a block.
        mlm_probability: share of a block's tokens that is masked.
    """
    shares = {"none": 0.0, "masked": masked_per_block(block_size, mlm_probability) / block_size, "all": 1.0}

    def forward(model: PreTrainedModel, reads: Reads) -> float:
        return forward_flops(model, block_size, shares[reads.logits], reads)

    needed = teacher if objective.needs_teacher else None
    own = objective.flops(needed.config if needed is not None else None, student.config, block_size)
    taught = 0.0 if needed is None else forward(needed, objective.teacher_reads) + own.teacher
    learnt = forward(student, objective.student_reads) + own.student
    return StepFlops(taught, learnt, 2 * learnt, taught + 3 * learnt)


def forward_flops(
    model: PreTrainedModel, block_size: int, head_share: float = 1.0, reads: Reads = LAST_HIDDEN
) -> float:
    """Count the FLOPs per token of a forward pass over blocks without padding.

    Args:
        model: of a known family.
        block_size: L, tokens of a block; attention takes 4 · A · H per token and layer, A the number of tokens that a
            token sees there, which is L at most, and H the hidden size.
        head_share: share of the tokens at which the masked-LM head is computed.
        reads: layers above what is read are not run. Of a layer whose queries, keys and values are read alone, those
            count.
    """
    family = family_of(model)
    layers = family.layers(model)
    depth, width = model.config.num_hidden_layers, model.config.hidden_size
    run = reads.layers_run(depth)
    in_run = sum(_linear_weights(layer) for layer in list(layers.children())[:run])
    if any(layer % depth >= run for layer in reads.attention):
        in_run += 3 * width * width
    outside = _linear_weights(model) - _linear_weights(layers)
    attended = sum(family.attended(model.config, layer, block_size) for layer in range(run))
    return 2 * in_run + 4 * attended * width + 2 * outside * head_share


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def matrix_product_rate(device: torch.device, dtype: torch.dtype, repetitions: int = 10) -> float:
    """Measure the FLOP/s of a large square matrix product: what a model could reach if it were nothing else.

    Args:
        device: where; the product is smaller on a CPU (1024³) than on a GPU (8192³).
        dtype: of the matrices.
        repetitions: products in each of three timings, of which the fastest counts.
    """
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cuda"])
    left, right, product = (torch.empty(size, size, device=device, dtype=dtype) for _ in range(3))
    for matrix in (left, right):  # of zeros the product would take less power, and so less time
        matrix.normal_()

    def seconds(repetitions: int) -> float:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(repetitions):
            torch.mm(left, right, out=product)
        synchronise(device)
        return time.perf_counter() - started

    seconds(1)  # warms up
    if (once := seconds(1)) > SLOW_SECONDS:  # a processor that emulates the type: once says enough
        return 2 * size**3 / once
    return 2 * size**3 * repetitions / min(seconds(repetitions) for _ in range(3))
