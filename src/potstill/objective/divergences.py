"""Divergences of two distributions over the vocabulary, with gradients with respect to the student's logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def forward_kl(teacher: Tensor, student: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return KL(teacher ‖ student), (n,), and its gradient (n, V) over the student's logits at temperature 1.

    Args:
        teacher: (n, V) log-probabilities; may be overwritten.
        student: (n, V) log-probabilities; may be overwritten.
        with_gradient: whether to compute the gradient. If False, None is returned in its place.
    """
    probabilities = teacher.exp()
    divergence = torch.linalg.vecdot(probabilities, teacher.sub_(student))
    return divergence, student.exp_().sub_(probabilities) if with_gradient else None


def reverse_kl(teacher: Tensor, student: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return KL(student ‖ teacher) and its gradient: see `forward_kl`."""
    ratio = torch.sub(student, teacher, out=teacher)
    probabilities = student.exp_()
    divergence = torch.linalg.vecdot(probabilities, ratio)
    return divergence, ratio.sub_(divergence[:, None]).mul_(probabilities) if with_gradient else None


def jensen_shannon(teacher: Tensor, student: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return the mean of KL(teacher ‖ m) and KL(student ‖ m), where m is the mean of both, and its gradient."""
    mean = torch.logaddexp(teacher, student).sub_(math.log(2))
    from_teacher = torch.linalg.vecdot(teacher.exp(), teacher.sub_(mean))
    ratio = torch.sub(student, mean, out=mean)
    probabilities = student.exp_()
    from_student = torch.linalg.vecdot(probabilities, ratio)
    divergence = (from_teacher + from_student) / 2
    return divergence, ratio.sub_(from_student[:, None]).mul_(probabilities).div_(2) if with_gradient else None


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}
