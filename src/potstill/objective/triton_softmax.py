"""The softmax part of the vocabulary pass as one Triton kernel: two reads of the logits and one write."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from potstill.objective.softmax import SoftmaxOptions

BLOCK = 4096  # columns that a program looks at together
GROUP = 8  # columns that one thread loads at once
NUM_WARPS = 16


@triton.jit
def _softmax_losses_kernel(
    student,
    teacher,
    labels,
    soft_losses,
    hard_losses,
    temperature,
    soft_scale,
    hard_scale,
    VOCAB_SIZE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_HARD: tl.constexpr,
    MASKED_ONLY: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * ROW_STRIDE
    teacher += row * ROW_STRIDE
    label = tl.load(labels + row)
    hard = HAS_HARD and label >= 0
    lanes: tl.constexpr = BLOCK // GROUP
    columns = tl.arange(0, lanes)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    # Beyond the vocabulary. Finite, so that the difference of two such is 0 and not NaN; and set after scaling, for a
    # scaling that is fused into a difference leaves its rounding error, which at this size is infinite as an exponent.
    lowest = -1.0e30
    to_base_2 = 1.4426950408889634 / temperature  # the device computes powers of 2; logarithms below are of base 2 too

    # First read: maximum so far and sum of powers relative to it, for each lane. The columns of a lane are of one
    # thread, so nothing is exchanged between threads until the end, and one rescaling serves all of them.
    student_max = tl.full([lanes], lowest, tl.float32)
    teacher_max = tl.full([lanes], lowest, tl.float32)
    student_sums = tl.zeros([lanes], tl.float32)
    teacher_sums = tl.zeros([lanes], tl.float32)
    cross_sums = tl.zeros([lanes], tl.float32)
    sharp_sums = tl.zeros([lanes], tl.float32)  # at temperature 1
    for start in range(0, VOCAB_SIZE, BLOCK):
        inside = start + columns < VOCAB_SIZE
        s = tl.load(student + start + columns, mask=inside, other=0.0).to(tl.float32)
        s = tl.where(inside, s * to_base_2, lowest)
        new_max = tl.maximum(student_max, tl.max(s, 1))
        if HAS_SOFT:
            t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32)
            t = tl.where(inside, t * to_base_2, lowest)
            new_teacher_max = tl.maximum(teacher_max, tl.max(t, 1))
            powers = tl.exp2(t - new_teacher_max[:, None])
            shrink = tl.exp2(teacher_max - new_teacher_max)
            teacher_sums = teacher_sums * shrink + tl.sum(powers, 1)
            cross_sums = cross_sums * shrink + tl.sum(powers * (t - s), 1)
            teacher_max = new_teacher_max
            shrink = tl.exp2(student_max - new_max)
            student_sums = student_sums * shrink + tl.sum(tl.exp2(s - new_max[:, None]), 1)
        if hard:
            shrink = tl.exp2((student_max - new_max) * temperature)
            sharp_sums = sharp_sums * shrink + tl.sum(tl.exp2((s - new_max[:, None]) * temperature), 1)
        student_max = new_max

    top = tl.max(student_max, 0)
    if HAS_SOFT:
        teacher_top = tl.max(teacher_max, 0)
        shrink = tl.exp2(teacher_max - teacher_top)
        teacher_sum = tl.sum(teacher_sums * shrink, 0)
        divergence = tl.sum(cross_sums * shrink, 0) / teacher_sum
        student_sum = tl.sum(student_sums * tl.exp2(student_max - top), 0)
        divergence += (top + tl.log2(student_sum)) - (teacher_top + tl.log2(teacher_sum))
        weight = 1.0
        if MASKED_ONLY:
            weight = tl.where(label >= 0, 1.0, 0.0)
        tl.store(soft_losses + row, divergence * weight * 0.6931471805599453)
        student_factor = weight * soft_scale / student_sum
        teacher_factor = weight * soft_scale / teacher_sum
    sharp_factor = 0.0
    if HAS_HARD:
        loss = 0.0
        if hard:
            sharp_sum = tl.sum(sharp_sums * tl.exp2((student_max - top) * temperature), 0)
            at_label = tl.load(student + label).to(tl.float32)
            loss = (top * temperature + tl.log2(sharp_sum)) * 0.6931471805599453 - at_label
            sharp_factor = hard_scale / sharp_sum
        tl.store(hard_losses + row, loss)

    # Second read, mostly out of the cache; the gradient takes the place of the student's logits.
    if WITH_GRADIENT:
        tl.debug_barrier()  # the label's logit has been read before any is overwritten
        for start in range(0, ROW_STRIDE, BLOCK):
            inside = start + columns < VOCAB_SIZE
            s = tl.load(student + start + columns, mask=inside, other=0.0).to(tl.float32) * to_base_2
            gradient = tl.zeros([lanes, GROUP], tl.float32)
            if HAS_SOFT:
                t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32) * to_base_2
                gradient = tl.exp2(s - top) * student_factor - tl.exp2(t - teacher_top) * teacher_factor
            if hard:
                gradient += tl.exp2((s - top) * temperature) * sharp_factor
                gradient -= tl.where(start + columns == label, hard_scale, 0.0)
            gradient = tl.where(inside, gradient, 0.0)
            tl.store(student + start + columns, gradient, mask=start + columns < ROW_STRIDE)


def triton_softmax_losses_(
    student: Tensor, teacher: Tensor | None, labels: Tensor, losses: Tensor, vocab_size: int, options: SoftmaxOptions
) -> None:
    """Do what `softmax_losses_` does."""
    _softmax_losses_kernel[(len(student),)](
        student,
        student if teacher is None else teacher,
        labels,
        losses[0],
        losses[1],
        options.temperature,
        options.soft_scale,
        options.hard_scale,
        VOCAB_SIZE=vocab_size,
        ROW_STRIDE=student.shape[1],
        HAS_SOFT=teacher is not None,
        HAS_HARD=options.hard_scale > 0,
        MASKED_ONLY=options.masked_only,
        WITH_GRADIENT=options.with_gradient,
        BLOCK=BLOCK,
        GROUP=GROUP,
        num_warps=NUM_WARPS,
    )
