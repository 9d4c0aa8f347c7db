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

    Where the function cannot be recorded, because it waits for the device, say, a warning tells why and it is run as
    it is for good.

    Args:
        function: takes tensors, and returns named tensors. One called `loss`, a scalar, may be differentiable; the
            others are for the log. What it does must depend on the shapes of its inputs alone.
        parameters: returns the parameters that the loss is differentiated by. They must not be part of a graph of
            autograd that was built elsewhere and is still alive.

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
        self._stream: Any = None
        self._gradients: list[Tensor] = []
        self._impossible = False

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return what the function does, in tensors of their own."""
        device = inputs[0].device.type
        if device != "cuda" or self._impossible:
            return self.function(*inputs)
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (precision, torch.is_grad_enabled(), *((tensor.shape, tensor.dtype) for tensor in inputs))
        # Casts that autocast keeps would outlive the recording, in memory that the next one writes to.
        autocast = torch.autocast(device, precision, enabled=precision is not None, cache_enabled=False)
        if key not in self.graphs:
            with autocast:
                if key not in self._seen:
                    self._seen.add(key)
                    return self._first_call(inputs)
                try:
                    self.graphs[key] = self._record(inputs)
                except RuntimeError as error:
                    self._give_up(error)
                    return self.function(*inputs)
        graph = self.graphs[key]
        for static, tensor in zip(graph.inputs, inputs, strict=True):
            static.copy_(tensor)
        graph.graph.replay()
        outputs = {name: tensor.clone() for name, tensor in graph.outputs.items()}
        if graph.gradients is not None:
            outputs["loss"] = _Replayed.apply(outputs["loss"], graph, *graph.parameters)
        return outputs

    def _first_call(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """Run the function on the stream that it will be recorded on, where autograd then keeps its own parts too."""
        current = torch.cuda.current_stream()
        if self._stream is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self.function(*inputs)
        current.wait_stream(self._stream)
        for tensor in inputs:
            tensor.record_stream(self._stream)
        for tensor in outputs.values():
            tensor.record_stream(current)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> _Graph:
        static = tuple(tensor.clone() for tensor in inputs)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not self._gradients:  # of all shapes
            self._gradients = [torch.empty_like(parameter) for parameter in parameters]
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        random_state = generator.clone_state()
        # Other threads pin memory or watch over NCCL meanwhile, which must not count as part of the recording.
        recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        try:
            with recording:
                outputs = self.function(*static)
                loss = outputs.get("loss")
                gradients: tuple[Tensor | None, ...] | None = None
                if loss is not None and loss.requires_grad:
                    found = torch.autograd.grad(loss, parameters, allow_unused=True)
                    pairs = list(zip(self._gradients, found, strict=True))
                    used = [(kept, new) for kept, new in pairs if new is not None]
                    torch._foreach_copy_([kept for kept, _ in used], [new for _, new in used])
                    gradients = tuple(kept if new is not None else None for kept, new in pairs)
                    del found, pairs, used
        except RuntimeError:
            generator.graphsafe_set_state(random_state)  # which would take itself to be recorded for ever
            raise
        return _Graph(graph, static, {name: value.detach() for name, value in outputs.items()}, parameters, gradients)

    def _give_up(self, error: BaseException) -> None:
        self._impossible = True
        while error.__context__ is not None:  # what the recording ends with is not what broke it
            error = error.__context__
        reason = str(error).split("\n")[0]
        warnings.warn(f"the step cannot be recorded as a CUDA graph and runs without: {reason}", stacklevel=3)
        torch.cuda.synchronize()


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
