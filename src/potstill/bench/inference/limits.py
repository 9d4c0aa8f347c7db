"""The least time of a request, from the weights that it has to read and the products that it has to compute."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from potstill.bench.flops import matrix_product_rate
from potstill.bench.inference.counting import Counted

READ_BYTES = 2**28
"""Far more than a cache holds."""

INT8_SIZE = 1024
REPETITIONS = 5


@dataclass(frozen=True)
class Limits:
    """The highest rates of the machine, with the threads of one request. Each is the best of several measurements.

    Attributes:
        bytes_per_second: reading from memory.
        flops_per_second: of a float32 matrix product.
        int8_per_second: operations of a product of 8-bit integers; the float32 rate if that is higher.
    """

    bytes_per_second: float
    flops_per_second: float
    int8_per_second: float

    def best(self, other: Limits) -> Limits:
        """Return the larger value of each rate in two measurements."""
        return Limits(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
            max(self.int8_per_second, other.int8_per_second),
        )


@dataclass(frozen=True)
class Bound:
    """The least time of a form's requests, and how far the form is from it.

    Attributes:
        weight_bytes: bytes that a request has to read, if it reads each weight once.
        milliseconds_of_weights: time to read these bytes at the memory's rate.
        milliseconds_of_products: time of a request's operations at the rate of a large product, mean over requests.
        milliseconds: the longer of the two times for each request, because they can overlap; mean over requests.
        times: measured mean time of a request, divided by `milliseconds`.
    """

    weight_bytes: int
    milliseconds_of_weights: float
    milliseconds_of_products: float
    milliseconds: float
    times: float


def bound(counted: Counted, weight_bits: int, lengths: Sequence[int], mean_seconds: float, limits: Limits) -> Bound:
    """Return the least time of requests of given lengths.

    Args:
        counted: counts of the model.
        weight_bits: bits of a weight of a matrix. Below 16 they are integers.
        lengths: of the requests, in tokens.
        mean_seconds: measured mean time of a request.
        limits: of the machine.
    """
    read = counted.bytes_read(weight_bits)
    weights = read / limits.bytes_per_second
    rate = limits.int8_per_second if weight_bits < 16 else limits.flops_per_second
    products = np.array([counted.flops[length] for length in lengths]) / rate
    least = float(np.maximum(products, weights).mean())
    return Bound(read, 1000 * weights, 1000 * float(products.mean()), 1000 * least, mean_seconds / least)


def measure_limits(threads: int) -> Limits:
    """Measure the highest rates of this machine with a number of threads."""
    with _threads(threads):
        read = torch.ones(READ_BYTES // 4)
        half, side = len(read) // 2, int(len(read) ** 0.5)
        square, vector = read[: side * side].view(side, side), torch.ones(side)
        ways: Mapping[Callable[[], object], int] = {
            lambda: read.sum(): 4 * len(read),
            lambda: torch.dot(read[:half], read[half : 2 * half]): 8 * half,
            lambda: torch.mv(square, vector): 4 * side * side,
        }
        by_bytes = max(size / _fastest(way) for way, size in ways.items())
        product = matrix_product_rate(torch.device("cpu"), torch.float32)
        return Limits(by_bytes, product, max(product, _int8_rate(threads)))


def _int8_rate(threads: int) -> float:
    """Return the operations per second of an int8 product, by the faster of PyTorch and onnxruntime (if installed)."""
    generator = np.random.default_rng(0)
    left, right = (generator.integers(0, 127, (INT8_SIZE, INT8_SIZE)).astype(np.int8) for _ in range(2))
    torch_left, torch_right = torch.from_numpy(left), torch.from_numpy(right)
    seconds = [_fastest(lambda: torch._int_mm(torch_left, torch_right), once_if_slower=0.1)]
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        seconds.append(_fastest(_onnx_product(left.astype(np.uint8), right, threads)))
    return 2 * INT8_SIZE**3 / min(seconds)


def _onnx_product(left: np.ndarray, right: np.ndarray, threads: int) -> Callable[[], object]:
    """Return a function that multiplies a matrix by weights (`right`) as a dynamically quantised model does."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, left.shape)],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def _fastest(way: Callable[[], object], once_if_slower: float = float("inf")) -> float:
    """Return the seconds of the fastest of several repetitions, the first of which warms up."""
    fastest = float("inf")
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        way()
        fastest = min(fastest, time.perf_counter() - started)
        if fastest > once_if_slower:
            break
    return fastest


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
