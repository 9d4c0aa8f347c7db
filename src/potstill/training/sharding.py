"""FSDP2: student and teachers are sharded over the processes of a run, so that they may be too large for one device.

`accelerate` shards the student's module and its optimiser. PyTorch saves the optimiser by
`torch.distributed.checkpoint`. Here is what only potstill needs: sharded teachers, and ordinary folders of a sharded
student.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.training_args import ParallelMode

from potstill.arguments import RunArguments
from potstill.errors import PotstillError
from potstill.student import family_of
from potstill.student.tensors import cast_parameters

Found = TypeVar("Found")


def check_sharding(args: RunArguments) -> None:
    """Check that a run with `--fsdp` can be sharded.

    Raises:
        PotstillError: there is no launcher, or another option does not go with sharding. The message names it.
    """
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise PotstillError(
            "--fsdp shares the models among the processes of a launcher, and there is none: start with torchrun "
            "--nproc_per_node 2 -m potstill, or leave it out."
        )
    version = args.fsdp_plugin_args["fsdp_version"]
    if version != 2:
        raise PotstillError(
            f"--fsdp_config asks for version {version} of FSDP, but potstill supports version 2 alone: leave it out."
        )
    for name in ("fp8", "quantization", "fixed_point", "average_weights", "grow", "cuda_graphs", "fp16"):
        if getattr(args, name, None):
            raise PotstillError(f"--{name} does not go with --fsdp: leave one of them out.")


def use_plugin(accelerator: Accelerator, args: RunArguments) -> None:
    """Let `accelerate` shard what it prepares, on a CPU too."""
    if accelerator.distributed_type != DistributedType.FSDP:  # it does not look for FSDP on CPUs
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    plugin = accelerator.state.fsdp_plugin
    # Gradients stay in float32, and autocast does the casts, as it does where activations are recomputed.
    plugin.mixed_precision_policy = None


def layer_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the classes of a model's layers. Each layer is gathered by itself."""
    return sorted({type(layer).__name__ for layer in family_of(model).layers(model)})


@torch.no_grad()
def shard_teacher(
    model: PreTrainedModel, root: nn.Module, device: torch.device, processes: int, dtype: torch.dtype | None
) -> None:
    """Shard a frozen model over all processes, in place. Its embeddings and its head stay whole on each device.

    Args:
        model: the model, on the CPU: no device has to hold it as a whole.
        root: contains the model. Its forward pass gathers one layer after the other.
        device: device of this process.
        processes: their number.
        dtype: type that the parameters are cast to; None to leave them.
    """
    if dtype is not None:
        cast_parameters(model, dtype)
    layers = list(family_of(model).layers(model))
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    whole = {parameter for parameter in root.parameters() if not isinstance(parameter, DTensor)}
    for tensor in (*whole, *root.buffers()):
        tensor.data = tensor.data.to(device)
    fully_shard(root, mesh=mesh, ignored_params=whole)
    root(torch.zeros(1, 8, dtype=torch.int64, device=device))  # an evaluation before the first step calls layers alone


def call_sharded(module: nn.Module, function: Callable[[], Found]) -> Found:
    """Call a function that calls parts of a module, such as its layers. What no part has is gathered meanwhile.

    Args:
        module: sharded or not.
        function: must make the same calls in all processes.
    """
    if not isinstance(module, FSDPModule):
        return function()
    # The type of a sharded module is one of its own, so this changes no other module.
    type(module).call_function = lambda _, function: function()
    register_fsdp_forward_method(module, "call_function")
    try:
        return module.call_function(function)
    finally:
        del module.call_function
        module.reshard()


def whole_state(module: nn.Module) -> dict[str, Any]:
    """Return the state of a sharded module, whole and on the CPU. All processes call this; only the first gets it."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_whole_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Load a whole state into a sharded module. All processes call this with the same state."""
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))


def all_finite(module: nn.Module) -> bool:
    """Return whether all parameters are finite, the shards of the other processes included."""
    parameters = list(module.parameters())
    own = [one.to_local() if isinstance(one, DTensor) else one for one in parameters]
    finite = all(bool(torch.isfinite(one).all()) for one in own)
    if not any(isinstance(one, DTensor) for one in parameters):
        return finite
    found = torch.tensor(float(finite), device=own[0].device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
    return bool(found.item())


class WholeCopy:
    """A copy of a model on the CPU of the first process, made before the model is sharded. It is what is saved.

    Args:
        model: not yet sharded.
        keep: whether this process keeps the copy.

    Attributes:
        model: the copy; None in the other processes.
    """

    def __init__(self, model: PreTrainedModel, keep: bool) -> None:
        self.model = copy.deepcopy(model).to("cpu") if keep else None

    def update(self, module: nn.Module, prefix: str) -> None:
        """Give the copy the weights that the sharded model has now. All processes must call this.

        Args:
            module: the sharded module.
            prefix: where the model is in it.
        """
        state = whole_state(module)
        if self.model is None:
            return
        mine = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
        self.model.load_state_dict(mine)
