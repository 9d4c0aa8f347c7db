"""Embeddings of another width than the student's pooled vectors: a Dense module that is a part of the student."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.sentences.dense import Dense
from potstill.sentences.encoder import SentenceEncoder

RIDGE = 1e-3
"""Weight of the penalty on large numbers, as a share of the mean square of the pooled vectors."""

AT_ONCE = 64
"""Texts that are read together."""


def add_dense(student: SentenceEncoder, teacher: SentenceEncoder, size: int, texts: Tensor | None) -> None:
    """Give a student embeddings of a size, by a Dense module without a bias and an activation.

    The module begins as the linear map that brings the student's pooled vectors closest to the embeddings of its
    teacher, by least squares over some texts. If the embeddings are to be smaller than the teacher's, the teacher's
    are first cut to their principal components (without centring, which would change the cosines).

    Args:
        student: is changed. Nothing is done if its embeddings have this size already.
        teacher: without Dense modules.
        size: width of the embeddings.
        texts: (N, L) int64, token ids of texts of one length; None for a module with random weights.

    Raises:
        PotstillError: the size is larger than the teacher's, or the teacher has Dense modules.
    """
    if len(teacher.dense):
        raise PotstillError(
            "--embedding_size adds a Dense module to the student, but the teacher has one already: leave it out."
        )
    if size > teacher.width:
        raise PotstillError(
            f"--embedding_size is {size}, but the teacher's embeddings are {teacher.width} wide: take at most this."
        )
    width = student.width
    if size == width:
        return
    dense = Dense(width, size, bias=False)
    if texts is not None:
        with torch.no_grad():
            dense.linear.weight.copy_(_closest_map(_embeddings(student, texts), _embeddings(teacher, texts), size))
    student.dense.append(dense.to(student.model.device, student.model.dtype))


def _embeddings(encoder: SentenceEncoder, texts: Tensor) -> Tensor:
    """Return the embeddings (N, D) of texts (N, L) in float64, on the CPU."""
    device = encoder.model.device
    with torch.no_grad():
        found = [encoder(part.to(device), torch.ones_like(part, device=device)) for part in texts.split(AT_ONCE)]
    return torch.cat(found).double().cpu()


def _closest_map(inputs: Tensor, targets: Tensor, size: int) -> Tensor:
    """Return W (size, P) for which inputs (N, P) times its transpose are closest to the targets (N, D).

    If `size` is below D, the targets are replaced by their first `size` principal components.
    """
    if size < targets.shape[1]:
        targets = targets @ torch.linalg.svd(targets, full_matrices=False).Vh[:size].T
    square = inputs.T @ inputs
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, inputs.T @ targets).T
