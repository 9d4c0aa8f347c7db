"""Counting the weights that a token is multiplied by."""

from torch import nn
from transformers.pytorch_utils import Conv1D

MATRICES = (nn.Linear, nn.Conv1d, Conv1D)


def matrix_weights(module: nn.Module) -> int:
    """The weights of all matrices in a module: each is one multiplication and one addition for a token.

    Of a mixture of experts all experts count, though a token meets only some of them.
    """
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, MATRICES))
