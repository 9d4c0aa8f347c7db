"""LayerNorms under the autocast of a CPU: their gradients are sums over thousands of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.training.float32_norms import use_float32_norms

TOKENS, WIDTH = 8192, 16


def gradients(norm: nn.LayerNorm, hidden: Tensor, factors: Tensor) -> list[Tensor]:
    norm.zero_grad()
    (norm(hidden) * factors).sum().backward()
    return [parameter.grad.double() for parameter in norm.parameters()]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [((one - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True)]


def test_sums_of_sixteen_bit_inputs_are_exact() -> None:
    hidden, factors = torch.randn(TOKENS, WIDTH).bfloat16(), torch.randn(TOKENS, WIDTH).bfloat16() + 0.5
    norm = nn.LayerNorm(WIDTH)
    normed = F.layer_norm(hidden.double(), (WIDTH,), eps=norm.eps)
    expected = [(normed * factors.double()).sum(0), factors.double().sum(0)]
    assert errors(gradients(norm, hidden, factors), expected)[1] > 0.1  # PyTorch itself loses them
    use_float32_norms(norm)
    assert max(errors(gradients(norm, hidden, factors), expected)) < 1e-2
    assert torch.equal(norm(hidden.float()), F.layer_norm(hidden.float(), (WIDTH,), norm.weight, norm.bias))


def test_a_model_gets_one_hook_a_norm_and_norms_without_weights_none() -> None:
    plain = nn.LayerNorm(WIDTH, elementwise_affine=False)
    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), plain)
    for _ in range(2):
        use_float32_norms(model)
    assert [len(module._forward_pre_hooks) for module in model] == [1, 0, 0]
    assert model(torch.randn(3, WIDTH)).dtype == torch.float32
