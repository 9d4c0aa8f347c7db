"""One process of two, whose step is replayed as a recorded step is, and then computed: torchrun starts it on CPUs."""

import sys

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from potstill.training.graphs import _aliases, _Graph, _Replayed


class Replaying(nn.Module):
    """Returns a loss whose gradients are known before the backward pass, as after the replay of a graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Tensor) -> Tensor:
        parameters = list(self.inner.parameters())
        with _aliases(self.inner, parameters) as leaves:
            loss = self.inner(batch).square().mean()
            gradients = torch.autograd.grad(loss, leaves)
        graph = _Graph(None, (), {}, parameters, gradients)  # type: ignore[arg-type]
        replayed: Tensor = _Replayed.apply(loss.detach(), graph, *parameters)
        return replayed


class Computing(Replaying):
    def forward(self, batch: Tensor) -> Tensor:
        return self.inner(batch).square().mean()


torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(int(sys.argv[1]))
start = [torch.randn(4, 6), torch.randn(4), torch.randn(1, 4), torch.randn(1)]
batches = torch.randn(2, 3, 2, 5, 6)  # processes, steps, micro-batches, rows, width
found = []
for kind in (Replaying, Computing):
    inner = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter, value in zip(inner.parameters(), start, strict=True):
            parameter.copy_(value)
    model = DistributedDataParallel(kind(inner), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in batches[rank]:
        with model.no_sync():
            model(step[0]).backward()
        model(step[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found.append([parameter.detach().clone() for parameter in model.parameters()])
for replayed, computed in zip(*found, strict=True):
    torch.testing.assert_close(replayed, computed)
    every = [torch.empty_like(replayed) for _ in range(2)]
    torch.distributed.all_gather(every, replayed)
    assert torch.equal(*every)
print("alike")
torch.distributed.destroy_process_group()
