"""Quantisation-aware training: a model computes with the numbers of its int8 export, and its weights stay float32.

The numbers are rounded in the forward pass; the gradient passes as if they were not (the straight-through estimator,
Bengio et al. 2013). What is rounded, and how, follows the graph of `export --format onnx-int8`: see
`potstill.precision.integers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

from potstill.errors import PotstillError
from potstill.precision import BITS
from potstill.precision.integers import (
    EIGHT_BITS,
    LARGE,
    SEVEN_BITS,
    is_feed_forward,
    levels,
    nearest_activations,
    nearest_weights,
)
from potstill.student.family import family_or_none
from potstill.student.interface import VocabularyHead

POSITIVE = (GELUActivation, nn.GELU, nn.ReLU)
"""Modules that an export writes as one node, `Gelu` or `Relu`."""

_MARK = "_potstill_never_far_below_zero"


def simulate(model: PreTrainedModel, integers: str, every_token: bool) -> None:
    """Make a model compute as its export in int8 does. Its parameters keep their names, so it is saved as before.

    Args:
        model: with a head; changed.
        integers: int8, or int4 for what `--weight_bits 4` writes.
        every_token: whether the head has an answer for every token: see `quantise_onnx`.

    Raises:
        PotstillError: the export of such a model is not simulated.
    """
    family = family_or_none(model.config)
    if family is None or any(isinstance(module, Conv1D) for module in model.modules()):
        raise PotstillError(
            f"--quantization {integers} is not simulated for models of the type {model.config.model_type}: leave it "
            "out, or fine-tune a BERT, a DistilBERT, a RoBERTa, an ELECTRA or a ModernBERT."
        )
    of_first_token: set[int] = set()
    if family.exports_plainly and not every_token:
        # Such an export computes only the first token of the last layer. Keys and values still read all tokens.
        assert family.widths is not None
        last = family.layers(model)[-1]
        reading_all = {id(last.get_submodule(name)) for name in family.widths.heads_out[1:]}
        of_first_token = {id(module) for module in last.modules()} - reading_all
    for name, module in list(model.named_modules()):
        parent, _, own = name.rpartition(".")
        simulated: nn.Module
        if type(module) is nn.Linear:
            simulated = SimulatedLinear(module, BITS[integers], every_token, id(module) in of_first_token)
        elif type(module) is nn.Embedding and module.weight.numel() >= LARGE:
            simulated = SimulatedEmbedding(module, BITS[integers])
        elif isinstance(module, POSITIVE):
            module.register_forward_hook(_mark)
            continue
        else:
            continue
        setattr(model.get_submodule(parent), own, simulated)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(table, SimulatedEmbedding) and isinstance(head, SimulatedLinear) and head.weight is table.weight:
        # The export writes one table for both, with the scales and the bits of the head.
        table.largest, head.in_four_bits = SEVEN_BITS, integers == "int4"


def as_exported(model: PreTrainedModel, head: VocabularyHead) -> VocabularyHead:
    """Return a vocabulary head that computes as in the export; the head itself if the model does not simulate.

    Args:
        model: with a language-model head.
        head: its head, perhaps with fewer rows.
    """
    projection = model.get_output_embeddings()
    if not isinstance(projection, SimulatedLinear) or not projection.simulates:
        return head

    def transform(hidden: Tensor) -> Tensor:
        return projection.rounded_input(head.transform(hidden), matmul=True)

    return VocabularyHead(transform, projection.rounded_weight(matmul=True)[: len(head.weight)], head.bias)


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Make a simulating model compute in float32 for the body."""
    changed = [module for module in model.modules() if isinstance(module, SimulatedLinear | SimulatedEmbedding)]
    for module in changed:
        module.simulates = False
    try:
        yield
    finally:
        for module in changed:
            module.simulates = True


class SimulatedLinear(nn.Linear):
    """A matrix of a model whose weights and inputs are rounded as in the export.

    Args:
        linear: its parameters are used, not copied.
        bits: of the weights.
        every_token: whether the input of a matrix that widens is levelled too.
        first_token: whether the export computes only the first token. Its numbers then decide the scale alone.
    """

    def __init__(self, linear: nn.Linear, bits: int, every_token: bool, first_token: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.bits, self.every_token, self.first_token = bits, every_token, first_token
        self.in_four_bits = False
        self.simulates = True
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return outputs (..., out_features), in float32, for inputs (..., in_features)."""
        if not self.simulates:
            return super().forward(input)
        # The export writes a matrix whose input has three dimensions as MatMul, and any other one as Gemm. It levels
        # the tokens of the first kind alone, and writes the first kind alone in 4 bits.
        matmul = input.dim() == 3
        # 16-bit types have too few digits for the 256 steps of an activation.
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(self.rounded_input(input, matmul), self.rounded_weight(matmul), self.bias)

    def rounded_input(self, input: Tensor, matmul: bool) -> Tensor:
        """Return the float32 numbers of the export for inputs (..., in_features).

        Args:
            input: activations.
            matmul: whether the export writes the matrix as MatMul.
        """
        x = input.float()
        level: Tensor | float = 1.0
        narrows = self.in_features > self.out_features
        if matmul and is_feed_forward(self.weight.shape) and (narrows or self.every_token):
            level = levels(x, getattr(input, _MARK, False))
        scaled = x / level
        measured = scaled[:, :1] if self.first_token and x.dim() == 3 else scaled
        return _straight_through(x, nearest_activations(scaled, measured) * level)

    def rounded_weight(self, matmul: bool) -> Tensor:
        """Return the float32 weights (out_features, in_features) of the export; `matmul` as in `rounded_input`."""
        small = self.in_four_bits or (matmul and is_feed_forward(self.weight.shape))
        return _straight_through(self.weight, nearest_weights(self.weight, self.bits if small else 8))


class SimulatedEmbedding(nn.Embedding):
    """A table of embeddings whose rows are rounded as in the export. Only the rows that are read are computed.

    Args:
        table: its parameter is used, not copied.
        bits: of a number.
    """

    def __init__(self, table: nn.Embedding, bits: int) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.sparse = table.padding_idx, table.sparse
        self.max_norm, self.norm_type = table.max_norm, table.norm_type
        self.scale_grad_by_freq = table.scale_grad_by_freq
        self.weight = table.weight
        self.bits, self.largest = bits, EIGHT_BITS
        self.simulates = True

    def forward(self, input: Tensor) -> Tensor:
        """Return rows (..., width) for ids (...)."""
        rows = super().forward(input)
        if not self.simulates:
            return rows
        rounded = nearest_weights(rows.flatten(0, -2), self.bits, self.largest).view_as(rows)
        return _straight_through(rows, rounded)


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded numbers; the gradient reaches the exact ones as it is."""
    return _StraightThrough.apply(exact, rounded)


class _StraightThrough(torch.autograd.Function):
    # `exact + (rounded - exact).detach()` would not return the rounded numbers exactly.
    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.to(exact.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _mark(module: nn.Module, inputs: Any, output: Tensor) -> None:
    setattr(output, _MARK, True)
