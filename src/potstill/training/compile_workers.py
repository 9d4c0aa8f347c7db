"""The processes in which PyTorch compiles kernels."""

from __future__ import annotations

from potstill.arguments import RunArguments


def start_compile_workers(args: RunArguments) -> None:
    """Start the processes that compile kernels, if the options of the run ask for compiled layers on a GPU.

    PyTorch itself starts them at the first compilation, which then waits for them some seconds. If they start before
    the models are built, they are ready when the first step needs them.

    Args:
        args: options of the run.
    """
    if not args.torch_compile or args.torch_compile_backend != "inductor" or args.device.type != "cuda":
        return
    try:
        from torch._inductor.async_compile import maybe_warm_pool
    except ImportError:  # it is no public function; without it the first step only waits longer
        return
    maybe_warm_pool()
