"""CUDA graphs: what a step launches, recorded once and replayed, so that a small model does not wait for Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Outputs = dict[str, Tensor]


class Graphed:
    """Runs a function of tensors as CUDA graphs, one for each shape of its inputs.

    A shape's first call runs as it is, which also brings up what is initialised lazily; the second one is recorded,
    with its backward pass in the same graph; from then on it is replayed. Dropout draws new numbers at each replay.

    Where the function cannot be recorded, because it waits for the device, it says so and is run as it is for good.

    Args:
        function: takes tensors, and returns named tensors. One called `loss`, a scalar, may be differentiable; the
            others are for the log. What it does must depend on the shapes of its inputs alone.
        parameters: returns the parameters that the loss is differentiated by.

    The graphs of all shapes share memory, so at most one call may await its backward pass.
    """

    def __init__(
        self, function: Callable[..., Outputs], parameters: Callable[[], Sequence[nn.Parameter]] = list
    ) -> None:
        self.function = function
        self.parameters = parameters
        self.clear()

    def clear(self) -> None:
        """Forget all that was recorded, which must be done when a parameter was replaced by another."""
        self.graphs: dict[Any, _Graph] = {}
        self._seen: set[Any] = set()
        self._pool: Any = None
        self._gradients: list[Tensor] = []
        self._impossible = False

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return what the function does, in tensors of their own."""
        device = inputs[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (precision, torch.is_grad_enabled(), *((tensor.shape, tensor.dtype) for tensor in inputs))
        if device != "cuda" or self._impossible:
            return self.function(*inputs)
        if key not in self.graphs:
            if key not in self._seen:
                self._seen.add(key)
                return self.function(*inputs)
            try:
                self.graphs[key] = self._record(inputs, precision)
            except RuntimeError as error:
                self._impossible = True
                reason = str(error).split("\n")[0]
                warnings.warn(f"the step cannot be recorded as a CUDA graph and runs without: {reason}", stacklevel=2)
                torch.cuda.synchronize()
                return self.function(*inputs)
        graph = self.graphs[key]
        for static, tensor in zip(graph.inputs, inputs, strict=True):
            static.copy_(tensor)
        graph.graph.replay()
        outputs = {name: tensor.clone() for name, tensor in graph.outputs.items()}
        if graph.gradients is not None:
            outputs["loss"] = _Replayed.apply(outputs["loss"], graph, *graph.parameters)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...], precision: torch.dtype | None) -> _Graph:
        static = tuple(tensor.clone() for tensor in inputs)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._gradients = [torch.empty_like(parameter) for parameter in parameters]
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory or watch over NCCL meanwhile, which must not count as part of the recording.
        recording = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        # Casts that autocast keeps would outlive the recording, in memory that the next one writes to.
        autocast = torch.autocast("cuda", precision, enabled=precision is not None, cache_enabled=False)
        with recording, autocast:
            outputs = self.function(*static)
            loss = outputs.get("loss")
            gradients: tuple[Tensor | None, ...] | None = None
            if loss is not None and loss.requires_grad:
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                used = [(kept, new) for kept, new in zip(self._gradients, found, strict=True) if new is not None]
                torch._foreach_copy_([kept for kept, _ in used], [new for _, new in used])
                gradients = tuple(
                    kept if new is not None else None for kept, new in zip(self._gradients, found, strict=True)
                )
                del found, used
        return _Graph(graph, static, {name: value.detach() for name, value in outputs.items()}, parameters, gradients)


class _Graph(NamedTuple):
    """A recording: it reads `inputs` and writes `outputs` and `gradients`, wherever they lie."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Outputs
    parameters: list[nn.Parameter]
    gradients: tuple[Tensor | None, ...] | None


class _Replayed(torch.autograd.Function):
    """The loss of a graph that has been replayed already, backward pass and all."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, graph: _Graph, *parameters: Tensor) -> Tensor:
        ctx.graph = graph
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.graph.gradients
        # In memory of their own: parameters may keep them while the next micro-batch is replayed.
        scaled = iter(torch._foreach_mul([gradient for gradient in gradients if gradient is not None], grad))
        return None, None, *(None if gradient is None else next(scaled) for gradient in gradients)
