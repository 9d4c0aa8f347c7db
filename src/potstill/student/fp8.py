"""Linear layers whose matrix products have 8-bit floating-point operands, with a scale for each row.

E4M3 has 3 bits of mantissa, so an operand is rounded by up to 1/16 of its value. E5M2 has 2 bits and a wider range.
Sums are in float32. A row of the left operand is a token, and a row of the right one is an output of the layer. Each
row is scaled so that its largest entry is the largest number of the type.

The gradient of a weight sums over all tokens, so it would need scales along the other side, and a transposed copy of
both operands. That takes as long as 8 bits save. It is computed in the type of the operands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import PotstillError
from potstill.student.fused import LinearGelu

Models = Literal["teacher", "student", "both"]
Gradients = Literal["e4m3", "e5m2", "off"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ALIGNMENT = 16  # the sizes of an 8-bit product are multiples of this
SMALLEST = 1e-30  # a row of zeros is divided by this instead of 0
WIDE, LONGEST = 1024, 8192
"""Rows of more than WIDE and at most LONGEST entries are quantised by a kernel of their own, which reads them once.
What is compiled for narrower rows does so too, and is fused with what makes them."""
_kernel_loaded = False


@dataclass(frozen=True)
class Fp8:
    """Which linear layers are computed with 8-bit operands, and how.

    Attributes:
        models: whose layers.
        ends: number of layers at each end of a model that stay as they are.
        gradients: type of the gradients in the backward pass of the student; off leaves that pass as it is. Weights are
            E4M3 in any case. It is off by default: at 768 wide, rounding the gradients takes as long as their faster
            products save.

    Raises:
        PotstillError: an option has a value that is not valid.
    """

    models: Models = "both"
    ends: int = 0
    gradients: Gradients = "off"

    def __post_init__(self) -> None:
        for name, choices in (("models", get_args(Models)), ("gradients", get_args(Gradients))):
            if getattr(self, name) not in choices:
                raise PotstillError(
                    f"--fp8: {name} is {getattr(self, name)!r}: it must be {', '.join(choices[:-1])} or {choices[-1]}."
                )
        if isinstance(self.ends, bool) or not isinstance(self.ends, int) or self.ends < 0:
            raise PotstillError(f"--fp8: ends is {self.ends!r}: it must be a whole number, 0 or more.")

    @classmethod
    def of(cls, value: Any) -> Fp8 | None:
        """Return the options that the value of `--fp8` describes; None for None.

        Args:
            value: whose layers, or a mapping of the attributes.

        Raises:
            PotstillError: there is no such option, or a value is not valid.
        """
        if value is None or isinstance(value, Fp8):
            return value
        if not isinstance(value, Mapping):
            return cls(models=value)
        names = [field.name for field in fields(cls)]
        unknown = [name for name in value if name not in names]
        if unknown:
            raise PotstillError(f"--fp8 has no option {unknown[0]!r}: choose from {', '.join(names)}.")
        return cls(**value)

    def of_role(self, role: Literal["teacher", "student"]) -> bool:
        """Return whether the layers of this model are computed with 8-bit operands."""
        return self.models in (role, "both")

    def __str__(self) -> str:
        parts = asdict(self)
        return f"FP8 in {'teacher and student' if self.models == 'both' else parts['models']}"


def quantise_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round (N, K) to an 8-bit type.

    Returns:
        The rounded rows (N, K), contiguous, and their scales (N, 1) in float32: the rows times the scales are about the
        values.
    """
    if values.is_cuda and WIDE < values.shape[-1] <= LONGEST and values.is_contiguous() and _kernel_loaded:
        rows, scales = torch.ops.potstill.quantise_rows(values, dtype)
        return rows, scales
    largest = values.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST)
    limit = torch.finfo(dtype).max
    return (values.float() * (limit / largest)).to(dtype).contiguous(), largest / limit


def quantise_gelu_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round GELU of (N, K), in its tanh form, to an 8-bit type: see `quantise_rows`."""
    if values.is_cuda and values.shape[-1] <= LONGEST and values.is_contiguous() and _kernel_loaded:
        rows, scales = torch.ops.potstill.quantise_gelu_rows(values, dtype)
        return rows, scales
    return quantise_rows(F.gelu(values, approximate="tanh"), dtype)


def load_kernel() -> None:
    """Use the kernels for wide rows and for GELU from now on, if Triton is installed."""
    global _kernel_loaded  # a plain variable, because compiled code reads it
    try:
        import potstill.student.triton_fp8  # noqa: F401 - registers the operator
    except ImportError:
        return
    _kernel_loaded = True


def scaled_product(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return `left @ right.T + bias`, (N, M), of rows (N, K) and (M, K) from `quantise_rows`.

    Other devices than GPUs emulate it in float32, which is slow.
    """
    if left[0].is_cuda:
        scales = (left[1], right[1].t())
        return torch._scaled_mm(left[0], right[0].t(), *scales, bias=bias, out_dtype=dtype, use_fast_accum=True)
    found = (left[0].float() * left[1]) @ (right[0].float() * right[1]).t()
    return (found if bias is None else found + bias.float()).to(dtype)


@torch.library.custom_op("potstill::fp8_product", mutates_args=())
def _fp8_product(
    rows: Tensor,
    scales: Tensor,
    weight_rows: Tensor,
    weight_scales: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradients: str,
) -> Tensor:
    """Return the product of operands that are rounded already, with gradients for `hidden`, `weight` and `bias`.

    It is an operator and no `autograd.Function`: in compiled code of torch 2.11 the gradients of such a function are
    zero, because its forward pass has no operation that can be differentiated.
    """
    return scaled_product((rows, scales), (weight_rows, weight_scales), bias, hidden.dtype)


@_fp8_product.register_fake
def _(
    rows: Tensor,
    scales: Tensor,
    weight_rows: Tensor,
    weight_scales: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradients: str,
) -> Tensor:
    return hidden.new_empty(len(rows), len(weight_rows))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, bias, gradients = inputs[4:]
    ctx.save_for_backward(hidden, weight)
    ctx.has_bias, ctx.gradients = bias is not None, gradients


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight = ctx.saved_tensors
    if ctx.gradients == "off":
        of_hidden = grad @ weight
    else:
        rows = quantise_rows(grad, E5M2 if ctx.gradients == "e5m2" else E4M3)
        of_hidden = scaled_product(rows, quantise_rows(weight.t(), E4M3), None, hidden.dtype)
    of_bias = grad.sum(0) if ctx.has_bias else None
    return None, None, None, None, of_hidden, grad.t() @ hidden, of_bias, None


_fp8_product.register_autograd(_backward, setup_context=_save)


class Fp8Linear(nn.Linear):
    """A linear layer in training, with the parameters of a given one. In evaluation it computes what that one does.

    Args:
        linear: its parameters are shared.
        gradients: see `Fp8`.
    """

    def __init__(self, linear: nn.Linear, gradients: Gradients) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.gradients: Gradients = gradients
        self.train(linear.training)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the outputs (..., M) for inputs (..., K)."""
        if not self.training:
            return F.linear(hidden, self.weight, self.bias)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            rows, weight, bias = hidden.flatten(0, -2).to(dtype), self.weight.to(dtype), self.bias
            found = _fp8_product(
                *quantise_rows(rows.detach(), E4M3),
                *quantise_rows(weight.detach(), E4M3),
                rows,
                weight,
                None if bias is None else bias.to(dtype),
                self.gradients,
            )
        return found.unflatten(0, hidden.shape[:-1])


class Quantised(NamedTuple):
    """Hidden states that are rounded already.

    Attributes:
        rows: (..., K), in an 8-bit type.
        scales: (..., 1) float32.
        dtype: type of the hidden states before.
    """

    rows: Tensor
    scales: Tensor
    dtype: torch.dtype


class FrozenFp8Linear(nn.Module):
    """A linear layer that is not trained. Its weight is rounded once.

    Args:
        linear: the layer that it replaces.
    """

    rows: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, scales = quantise_rows(linear.weight.detach(), E4M3)
        self.register_buffer("rows", rows)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, hidden: Tensor | Quantised) -> Tensor:
        """Return the outputs (..., M) for inputs (..., K)."""
        if isinstance(hidden, Quantised):
            shape, dtype = hidden.rows.shape[:-1], hidden.dtype
            left = hidden.rows.flatten(0, -2), hidden.scales.flatten(0, -2)
        else:
            shape, dtype = hidden.shape[:-1], hidden.dtype
            left = quantise_rows(hidden.flatten(0, -2), E4M3)
        bias = None if self.bias is None else self.bias.detach()  # an 8-bit product has no derivative of its own
        return scaled_product(left, (self.rows, self.scales), bias, dtype).unflatten(0, shape)


class FrozenFp8LinearGelu(nn.Module):
    """A `LinearGelu` with 8-bit operands whose only reader is a `FrozenFp8Linear`.

    It rounds what that layer reads in the kernel that computes GELU. Otherwise GELU would be written in 16 bits and
    read again, which takes as long as the 8-bit products around it save.

    Args:
        linear: the linear layer in it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = FrozenFp8Linear(linear)

    def forward(self, hidden: Tensor) -> Quantised:
        """Return GELU(linear(hidden)), rounded, for hidden of shape (..., in_features)."""
        inner = self.linear(hidden)
        rows, scales = quantise_gelu_rows(inner.flatten(0, -2), E4M3)
        return Quantised(rows.unflatten(0, inner.shape[:-1]), scales.unflatten(0, inner.shape[:-1]), inner.dtype)


def use_fp8(layers: Sequence[nn.Module], options: Fp8, frozen: bool, after_gelu: Sequence[str] = ()) -> None:
    """Replace the linear layers inside of a model's layers, in place. Parameters keep their names if not `frozen`.

    Args:
        layers: of a model, in order.
        options: see `Fp8`.
        frozen: whether the model is not trained.
        after_gelu: names of the linear layers that read the feed-forward layer's activation: `LayerWidths.neurons_in`.

    Raises:
        PotstillError: there is no linear layer whose sizes are multiples of 16.
    """
    if torch.cuda.is_available():
        load_kernel()
    found = 0
    for layer in layers[options.ends : len(layers) - options.ends]:
        if frozen and len(after_gelu) == 1:
            found += _quantise_in_gelu(layer, after_gelu[0])
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if _fits(child):
                    new = FrozenFp8Linear(child) if frozen else Fp8Linear(child, options.gradients)
                    setattr(module, name, new)
                    found += 1
    if not found:
        raise PotstillError(
            f"--fp8 finds no linear layer to compute with 8-bit operands: of {len(layers)} layers {options.ends} at "
            f"each end are left out, and the sizes of a linear layer must be multiples of {ALIGNMENT}."
        )


def _fits(module: nn.Module) -> bool:
    """Return whether a module is a linear layer that can have 8-bit operands."""
    return type(module) is nn.Linear and not any(size % ALIGNMENT for size in module.weight.shape)


def _quantise_in_gelu(layer: nn.Module, reader: str) -> int:
    """Replace the `LinearGelu` whose output a linear layer reads, if there is one. Return how many were replaced."""
    gelus = [(name, module) for name, module in layer.named_modules() if isinstance(module, LinearGelu)]
    if len(gelus) != 1 or not (_fits(gelus[0][1].linear) and _fits(layer.get_submodule(reader))):
        return 0
    [(name, gelu)] = gelus
    assert isinstance(gelu.linear, nn.Linear)
    layer.set_submodule(name, FrozenFp8LinearGelu(gelu.linear))
    return 1


def check_device(options: Fp8, device: torch.device, bf16: bool) -> None:
    """Check that a device can multiply with 8-bit operands, or emulates it.

    Raises:
        PotstillError: it cannot, or the run is not in bfloat16.
    """
    if device.type == "cpu":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise PotstillError(
            "--fp8 needs a GPU that multiplies in 8 bits (compute capability 8.9 or later): leave it out."
        )
    if not bf16:
        raise PotstillError("--fp8 needs --bf16: give that too, or leave it out.")
