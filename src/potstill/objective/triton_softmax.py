"""The softmax part of the vocabulary pass as one Triton kernel: two reads of the logits and one write.

Jensen-Shannon takes a third read: its value needs both normalised softmaxes, and its gradient needs its value.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from potstill.objective.softmax import SoftmaxOptions

BLOCK = 4096  # columns that a program processes at once
GROUP = 8  # columns that one thread loads at once
NUM_WARPS = 16
DIVERGENCES = {"forward_kl": 0, "reverse_kl": 1, "jensen_shannon": 2}  # their numbers in the kernel


@triton.jit
def _softmax_losses_kernel(
    student,
    teacher,
    labels,
    weights,
    soft_losses,
    hard_losses,
    squared_losses,
    temperature,
    soft_scale,
    hard_scale,
    squared_scale,
    VOCAB_SIZE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_HARD: tl.constexpr,
    HAS_SQUARED: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    MASKED_ONLY: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    SQUARED_MASKED_ONLY: tl.constexpr,
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
    # Value of columns beyond the vocabulary. It is finite, so that the difference of two such values is 0 and not NaN.
    # It is set after scaling: a scaling that is fused into a difference leaves a rounding error, and at this size that
    # error is infinite as an exponent.
    lowest = -1.0e30
    to_base_2 = 1.4426950408889634 / temperature  # the device computes powers of 2; all logarithms below have base 2

    # First read: for each lane, the maximum so far and the sum of powers relative to it. One thread has all columns of
    # a lane, so threads exchange nothing until the end, and one rescaling serves all columns of the lane.
    student_max = tl.full([lanes], lowest, tl.float32)
    teacher_max = tl.full([lanes], lowest, tl.float32)
    student_sums = tl.zeros([lanes], tl.float32)
    teacher_sums = tl.zeros([lanes], tl.float32)
    cross_sums = tl.zeros([lanes], tl.float32)
    sharp_sums = tl.zeros([lanes], tl.float32)  # at temperature 1
    squared_sums = tl.zeros([lanes], tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        inside = start + columns < VOCAB_SIZE
        s = tl.load(student + start + columns, mask=inside, other=0.0).to(tl.float32)
        s = tl.where(inside, s * to_base_2, lowest)
        new_max = tl.maximum(student_max, tl.max(s, 1))
        if HAS_SOFT or HAS_SQUARED:
            t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32)
            t = tl.where(inside, t * to_base_2, lowest)
        if HAS_SQUARED:
            squared_sums += tl.sum((s - t) * (s - t), 1)
        if HAS_SOFT:
            new_teacher_max = tl.maximum(teacher_max, tl.max(t, 1))
            powers = tl.exp2(t - new_teacher_max[:, None])
            shrink = tl.exp2(teacher_max - new_teacher_max)
            teacher_sums = teacher_sums * shrink + tl.sum(powers, 1)
            if DIVERGENCE == 0:
                cross_sums = cross_sums * shrink + tl.sum(powers * (t - s), 1)
            teacher_max = new_teacher_max
            shrink = tl.exp2(student_max - new_max)
            powers = tl.exp2(s - new_max[:, None])
            student_sums = student_sums * shrink + tl.sum(powers, 1)
            if DIVERGENCE == 1:
                cross_sums = cross_sums * shrink + tl.sum(powers * (s - t), 1)
        if hard:
            shrink = tl.exp2((student_max - new_max) * temperature)
            sharp_sums = sharp_sums * shrink + tl.sum(tl.exp2((s - new_max[:, None]) * temperature), 1)
        student_max = new_max

    top = tl.max(student_max, 0)
    if HAS_SOFT:
        teacher_top = tl.max(teacher_max, 0)
        shrink = tl.exp2(teacher_max - teacher_top)
        teacher_sum = tl.sum(teacher_sums * shrink, 0)
        student_shrink = tl.exp2(student_max - top)
        student_sum = tl.sum(student_sums * student_shrink, 0)
        # The difference of two scaled logits minus this offset is the difference of two log-probabilities.
        offset = (teacher_top + tl.log2(teacher_sum)) - (top + tl.log2(student_sum))
        if DIVERGENCE == 0:
            divergence = tl.sum(cross_sums * shrink, 0) / teacher_sum - offset
        elif DIVERGENCE == 1:
            divergence = tl.sum(cross_sums * student_shrink, 0) / student_sum + offset
        else:
            from_teacher = tl.zeros([lanes], tl.float32)
            from_student = tl.zeros([lanes], tl.float32)
            for start in range(0, VOCAB_SIZE, BLOCK):
                inside = start + columns < VOCAB_SIZE
                s = tl.load(student + start + columns, mask=inside, other=0.0).to(tl.float32) * to_base_2
                t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32) * to_base_2
                ratio = (t - s) - offset  # log2(p / q), with p of the teacher and q of the student
                to_mean = tl.maximum(ratio, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(ratio))) - 1.0  # log2(mean / q)
                q = tl.where(inside, tl.exp2(s - top), 0.0)
                p = tl.where(inside, tl.exp2(t - teacher_top), 0.0)
                from_teacher += tl.sum(p * (ratio - to_mean), 1)
                from_student -= tl.sum(q * to_mean, 1)
            student_part = tl.sum(from_student, 0) / student_sum
            divergence = 0.5 * (tl.sum(from_teacher, 0) / teacher_sum + student_part)
        weight = 1.0
        if MASKED_ONLY:
            weight = tl.where(label >= 0, 1.0, 0.0)
        if HAS_WEIGHTS:
            weight = weight * tl.load(weights + row)
        tl.store(soft_losses + row, divergence * weight * 0.6931471805599453)
        student_factor = weight * soft_scale / student_sum
        teacher_factor = weight * soft_scale / teacher_sum
        if DIVERGENCE > 0:
            student_factor = student_factor * 0.6931471805599453
    if HAS_SQUARED:
        squared_weight = 1.0
        if SQUARED_MASKED_ONLY:
            squared_weight = tl.where(label >= 0, 1.0, 0.0)
        squared = tl.sum(squared_sums, 0) / VOCAB_SIZE / (to_base_2 * to_base_2)
        tl.store(squared_losses + row, squared * squared_weight)
        squared_factor = squared_weight * squared_scale * 2 / VOCAB_SIZE / to_base_2
    sharp_factor = 0.0
    if HAS_HARD:
        loss = 0.0
        if hard:
            sharp_sum = tl.sum(sharp_sums * tl.exp2((student_max - top) * temperature), 0)
            at_label = tl.load(student + label).to(tl.float32)
            loss = (top * temperature + tl.log2(sharp_sum)) * 0.6931471805599453 - at_label
            sharp_factor = hard_scale / sharp_sum
        tl.store(hard_losses + row, loss)

    # Second read, mostly from the cache. The gradient overwrites the student's logits.
    if WITH_GRADIENT:
        tl.debug_barrier()  # every thread has read the label's logit before any logit is overwritten
        for start in range(0, ROW_STRIDE, BLOCK):
            inside = start + columns < VOCAB_SIZE
            s = tl.load(student + start + columns, mask=inside, other=0.0).to(tl.float32) * to_base_2
            gradient = tl.zeros([lanes, GROUP], tl.float32)
            if HAS_SOFT or HAS_SQUARED:
                t = tl.load(teacher + start + columns, mask=inside, other=0.0).to(tl.float32) * to_base_2
            if HAS_SOFT:
                if DIVERGENCE == 0:
                    gradient = tl.exp2(s - top) * student_factor - tl.exp2(t - teacher_top) * teacher_factor
                elif DIVERGENCE == 1:
                    gradient = tl.exp2(s - top) * student_factor * ((s - t) + offset - divergence)
                else:
                    ratio = (t - s) - offset
                    to_mean = tl.maximum(ratio, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(ratio))) - 1.0
                    gradient = tl.exp2(s - top) * student_factor * 0.5 * (-to_mean - student_part)
            if HAS_SQUARED:
                gradient += (s - t) * squared_factor
            if hard:
                gradient += tl.exp2((s - top) * temperature) * sharp_factor
                gradient -= tl.where(start + columns == label, hard_scale, 0.0)
            gradient = tl.where(inside, gradient, 0.0)
            tl.store(student + start + columns, gradient, mask=start + columns < ROW_STRIDE)


def triton_softmax_losses_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    losses: Tensor,
    vocab_size: int,
    options: SoftmaxOptions,
    weights: Tensor | None = None,
) -> None:
    """Do the same as `softmax_losses_`, on a GPU."""
    _softmax_losses_kernel[(len(student),)](
        student,
        student if teacher is None else teacher,
        labels,
        losses[0] if weights is None else weights,
        losses[0],
        losses[1],
        losses[-1],
        options.temperature,
        options.soft_scale,
        options.hard_scale,
        options.squared_scale,
        VOCAB_SIZE=vocab_size,
        ROW_STRIDE=student.shape[1],
        HAS_SOFT=teacher is not None and options.soft_scale > 0,
        HAS_HARD=options.hard_scale > 0,
        HAS_SQUARED=teacher is not None and options.squared_scale > 0,
        DIVERGENCE=DIVERGENCES[options.divergence],
        MASKED_ONLY=options.masked_only,
        HAS_WEIGHTS=weights is not None,
        SQUARED_MASKED_ONLY=options.squared_masked_only,
        WITH_GRADIENT=options.with_gradient,
        BLOCK=BLOCK,
        GROUP=GROUP,
        num_warps=NUM_WARPS,
    )
