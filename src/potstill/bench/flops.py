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
from potstill.objective import DistillationObjective
from potstill.student import family_of

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
SLOW_SECONDS = 0.5


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs per token of a training step; attention makes them depend on the block's length.

    Attributes:
        teacher_forward: 0 where no loss compares with a teacher.
        student_forward: with the projection onto the vocabulary at the share of tokens that a loss reads.
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
    objective: DistillationObjective,
    block_size: int,
    mlm_probability: float,
) -> StepFlops:
    """Count the model FLOPs per token that a step needs, whatever an implementation computes besides.

    Args:
        student: the model in training.
        teacher: the frozen one; it only counts if a loss needs it.
        objective: decides at which tokens the heads are needed: all, the masked ones or none.
        block_size: L, tokens of a block.
        mlm_probability: share of a block's tokens that is masked.
    """
    masked = masked_per_block(block_size, mlm_probability) / block_size
    at_soft_targets = 0.0 if objective.alpha_ce == 0 else 1.0 if objective.soft_targets == "all" else masked
    at_labels = masked if objective.alpha_mlm > 0 else 0.0
    taught = 0.0
    if teacher is not None and objective.needs_teacher:
        taught = forward_flops(teacher, block_size, at_soft_targets)
    forward = forward_flops(student, block_size, max(at_soft_targets, at_labels))
    return StepFlops(taught, forward, 2 * forward, taught + 3 * forward)


def forward_flops(model: PreTrainedModel, block_size: int, head_share: float = 1.0) -> float:
    """Count the FLOPs per token of a forward pass over blocks without padding.

    Args:
        model: of a known family.
        block_size: L, tokens of a block; attention takes 4 · L · H per token and layer, H the hidden size.
        head_share: share of the tokens at which the masked-LM head is computed.
    """
    layers = model.get_submodule(family_of(model).layer_prefix.rstrip("."))
    in_layers, in_all = _linear_weights(layers), _linear_weights(model)
    attention = 4 * block_size * model.config.hidden_size * model.config.num_hidden_layers
    return 2 * in_layers + attention + 2 * (in_all - in_layers) * head_share


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
