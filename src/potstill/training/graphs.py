"""CUDA graphs: record the kernels of a step once and replay them, so that a small model does not wait for Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Outputs = dict[str, Tensor]


class Graphed:
    """Runs a function of tensors as CUDA graphs, one for each shape of its inputs.

    The first call for a shape runs without a graph, and also triggers all lazy initialisation. The second call is
    recorded, with its backward pass in the same graph. All later calls replay it. Dropout draws new numbers at each
    replay.

    Some functions cannot be recorded, for example because they wait for the device. Then a warning gives the reason,
    and the function runs without graphs from then on.

    Args:
        function: takes tensors, and returns named tensors. One of them, the scalar `loss`, may be differentiable; the
            others are for the log. The operations must depend on the shapes of the inputs alone.
        module: the loss is differentiated with respect to its parameters. The function must read them from it.

    The graphs of all shapes share memory, so at most one call may be waiting for its backward pass.
    """

    def __init__(self, function: Callable[..., Outputs], module: nn.Module | None = None) -> None:
        self.function = function
        self.module = nn.Module() if module is None else module
        self.clear()

    def clear(self) -> None:
        """Drop all recordings. This is necessary after a parameter was replaced by another."""
        self.graphs: dict[Any, _Graph] = {}
        self._seen: set[Any] = set()
        self._pool: Any = None
        self._stream: Any = None
        self._gradients: list[Tensor] = []
        self._impossible = False

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return the outputs of the function, in newly allocated tensors."""
        device = inputs[0].device.type
        if device != "cuda" or self._impossible:
            return self.function(*inputs)
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (precision, torch.is_grad_enabled(), *((tensor.shape, tensor.dtype) for tensor in inputs))
        # Casts in the cache of autocast would outlive the recording, in memory that the next recording overwrites.
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
        """Run the function on the stream that will record it, so that autograd uses this stream too."""
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
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if not self._gradients:  # shared by all shapes
            self._gradients = [torch.empty_like(parameter) for parameter in parameters]
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        random_state = generator.clone_state()
        # Meanwhile other threads pin memory or watch NCCL. Their calls must not become part of the recording.
        recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        try:
            with _aliases(self.module, parameters) as leaves, recording:
                outputs = self.function(*static)
                loss = outputs.get("loss")
                gradients: tuple[Tensor | None, ...] | None = None
                if loss is not None and loss.requires_grad:
                    found = torch.autograd.grad(loss, leaves, allow_unused=True)
                    pairs = list(zip(self._gradients, found, strict=True))
                    used = [(kept, new) for kept, new in pairs if new is not None]
                    torch._foreach_copy_([kept for kept, _ in used], [new for _, new in used])
                    gradients = tuple(kept if new is not None else None for kept, new in pairs)
                    del found, pairs, used
        except RuntimeError:
            generator.graphsafe_set_state(random_state)  # otherwise the generator would stay in recording mode
            raise
        return _Graph(graph, static, {name: value.detach() for name, value in outputs.items()}, parameters, gradients)

    def _give_up(self, error: BaseException) -> None:
        self._impossible = True
        while error.__context__ is not None:  # the first error is the reason; later ones come from its clean-up
            error = error.__context__
        reason = str(error).split("\n")[0]
        warnings.warn(f"the step cannot be recorded as a CUDA graph and runs without one: {reason}", stacklevel=3)
        torch.cuda.synchronize()


@contextmanager
def _aliases(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Give a module other parameters in the same memory, and yield them in the order of the given ones.

    `DistributedDataParallel` keeps the ends of the autograd graph of each parameter alive. They belong to the stream on
    which it was made, which a recording may not wait for. New parameters get ends on the stream that records.
    """
    aliases = {id(parameter): nn.Parameter(parameter.detach()) for parameter in parameters}
    replaced = []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in aliases:
                replaced.append((part, name, parameter))
    try:
        for part, name, parameter in replaced:
            part._parameters[name] = aliases[id(parameter)]
        yield list(aliases.values())
    finally:
        for part, name, parameter in replaced:
            part._parameters[name] = parameter


class _Graph(NamedTuple):
    """A recording: it reads `inputs` and writes `outputs` and `gradients`, always at the same addresses."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Outputs
    parameters: list[nn.Parameter]
    gradients: tuple[Tensor | None, ...] | None


class _Replayed(torch.autograd.Function):
    """The loss of a graph that has already been replayed, its backward pass included."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, graph: _Graph, *parameters: Tensor) -> Tensor:
        ctx.graph = graph
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.graph.gradients
        # These need new memory: parameters may keep them while the next micro-batch is replayed.
        scaled = iter(torch._foreach_mul([gradient for gradient in gradients if gradient is not None], grad))
        return None, None, *(None if gradient is None else next(scaled) for gradient in gradients)
