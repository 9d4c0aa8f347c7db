"""The one pass over the vocabulary against logits, losses and gradients written out in float64, on fresh numbers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.objective import softmax as softmax_part
from potstill.objective import vocabulary
from potstill.objective.chunks import Projection, VocabularyPass, softmax
from potstill.objective.parts import MaskedLM, SoftTargets
from potstill.objective.softmax import Divergence, SoftmaxOptions
from potstill.objective.term import Batch, Encoded
from potstill.objective.vocabulary import Vocabulary
from potstill.student import VocabularyHead

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@dataclass
class Case:
    """Inputs of a pass: N tokens, H wide, V words."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    teacher: Projection
    labels: Tensor
    weights: Tensor | None = None

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> Case:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype).requires_grad_(tensor.requires_grad)

        teacher = Projection(*(moved(part) for part in self.teacher))
        weights = None if self.weights is None else self.weights.to(device, torch.promote_types(dtype, torch.float32))
        student = (moved(self.hidden), moved(self.weight), moved(self.bias))
        return Case(*student, teacher, self.labels.to(device), weights)

    def gradients(self) -> list[Tensor]:
        return [part.grad.double().cpu() for part in (self.hidden, self.weight, self.bias)]


def new_case(tokens: int = 37, width: int = 24, words: int = 101, labelled: float = 0.3) -> Case:
    """Fresh numbers at every run, of the size that logits have."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    labels = torch.where(torch.rand(tokens) < labelled, torch.randint(words, (tokens,)), -100)
    labels[0] = words - 1  # there is one at least, at the edge of the padding
    teacher = Projection(normal(tokens, width), normal(words, width), normal(words))
    student = [normal(tokens, width), normal(words, width), normal(words)]
    return Case(*(part.requires_grad_() for part in student), teacher, labels)


def exact(case: Case, options: SoftmaxOptions, soft: bool) -> tuple[float, list[Tensor]]:
    """The scaled sum of both losses and its gradients, from whole matrices of logits in float64."""
    case = case.to("cpu", torch.float64)
    logits = case.hidden @ case.weight.T + case.bias
    targets = case.teacher.hidden @ case.teacher.weight.T + case.teacher.bias
    temperature = options.temperature
    p, q = (F.log_softmax(z / temperature, dim=-1) for z in (targets, logits))
    m = ((p.exp() + q.exp()) / 2).log()
    soft_losses = {
        "forward_kl": (p.exp() * (p - q)).sum(-1),
        "reverse_kl": (q.exp() * (q - p)).sum(-1),
        "jensen_shannon": ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2,
    }[options.divergence]
    squared = ((logits - targets) ** 2).mean(-1)
    labelled = case.labels >= 0
    if options.masked_only:
        soft_losses = soft_losses * labelled
    if case.weights is not None:
        soft_losses = soft_losses * case.weights
    if options.squared_masked_only:
        squared = squared * labelled
    hard = F.cross_entropy(logits, case.labels, reduction="sum")
    total = options.hard_scale * hard
    if soft:
        total = total + options.soft_scale * temperature * soft_losses.sum() + options.squared_scale * squared.sum()
    total.backward()
    return total.item(), case.gradients()


def run(
    case: Case, options: SoftmaxOptions, soft: bool, dtype: torch.dtype, chunk_size: int, alignment: int
) -> tuple[float, list[Tensor]]:
    teacher = case.teacher if soft else None
    total, _ = VocabularyPass.apply(
        case.hidden, case.weight, case.bias, teacher, case.labels, options, dtype, chunk_size, alignment, case.weights
    )
    total.backward()
    return total.item(), case.gradients()


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative to the gradient, or to 1: Jensen-Shannon's is all but 0 where distributions hardly overlap."""
    return ((found - expected).norm() / expected.norm().clamp(min=1.0)).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("options", "soft"),
    [
        (SoftmaxOptions(2.0, 1.0, 0.4, False, True), True),
        (SoftmaxOptions(2.0, 1.0, 0.4, True, True), True),
        (SoftmaxOptions(1.0, 1.0, 0.4, False, True), True),
        (SoftmaxOptions(3.5, 0.3, 1.0, False, True), True),
        (SoftmaxOptions(0.7, 1.0, 0.0, False, True), True),
        (SoftmaxOptions(2.0, 0.0, 1.0, False, True), False),
        (SoftmaxOptions(2.0, 1.0, 0.4, False, True, "reverse_kl"), True),
        (SoftmaxOptions(0.8, 1.0, 0.4, True, True, "reverse_kl"), True),
        (SoftmaxOptions(2.0, 1.0, 0.4, False, True, "jensen_shannon"), True),
        (SoftmaxOptions(0.8, 1.0, 0.0, True, True, "jensen_shannon"), True),
        (SoftmaxOptions(1.0, 0.0, 0.0, False, True, "forward_kl", 1.0), True),
        (SoftmaxOptions(2.0, 1.0, 0.4, False, True, "jensen_shannon", 0.7, True), True),
        (SoftmaxOptions(2.0, 1.0, 0.4, True, True, "forward_kl", 0.7, False), True),
    ],
    ids=[
        *("both", "masked only", "T=1", "T=3.5", "no hard loss", "no soft loss"),
        *("reverse", "reverse, masked only", "JS", "JS, masked only"),
        *("MSE alone", "all, MSE masked only", "all, KL masked only"),
    ],
)
@pytest.mark.parametrize(
    ("shape", "chunk_size", "alignment"),
    [
        ({}, 37, 1),
        ({}, 8, 1),
        ({}, 1000, 64),
        ({"tokens": 1}, 8, 1),
        ({"words": 128}, 10, 64),
        ({"words": 5000}, 16, 64),
    ],
    ids=["one chunk", "chunks that do not divide", "padded", "one token", "nothing to pad", "many words"],
)
def test_losses_and_gradients_equal_those_of_whole_logits(
    device: str, options: SoftmaxOptions, soft: bool, shape: dict[str, int], chunk_size: int, alignment: int
) -> None:
    case = new_case(**shape)
    expected, expected_gradients = exact(case, options, soft)
    tolerances = {torch.float32: 3e-5} if device == "cuda" else {torch.float64: 1e-12, torch.float32: 3e-5}
    for dtype, tolerance in tolerances.items():
        found, gradients = run(case.to(device, dtype), options, soft, dtype, chunk_size, alignment)
        assert found == pytest.approx(expected, rel=tolerance)
        for name, one, other in zip(("hidden", "weight", "bias"), gradients, expected_gradients, strict=True):
            assert distance(one, other) < tolerance, name


def test_a_chunk_is_compared_in_slices_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.objective.softmax.CACHED", 3 * 101)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen: list[int] = []
    compare = softmax_part._compare_rows_
    monkeypatch.setattr(softmax_part, "_compare_rows_", lambda *args: (seen.append(len(args[0])), compare(*args)))
    options, case = SoftmaxOptions(2.0, 1.0, 0.4, False, True, "forward_kl", 0.7, True), new_case()
    case.weights = torch.rand(len(case.labels), dtype=torch.float64) * 5
    expected, expected_gradients = exact(case, options, True)
    found, gradients = run(case, options, True, torch.float64, 16, 1)
    assert seen == [6, 6, 4, 6, 6, 4, 5]  # of chunks of 16, 16 and 5 tokens
    assert found == pytest.approx(expected, rel=1e-12)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert distance(one, other) < 1e-12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("squared", [0.0, 0.7])
def test_tokens_count_by_their_weight(device: str, divergence: Divergence, squared: float) -> None:
    options = SoftmaxOptions(2.0, 1.0, 0.4, False, True, divergence, squared, True)
    case = new_case()
    case.weights = torch.rand(len(case.labels), dtype=torch.float64) * 5
    expected, expected_gradients = exact(case, options, True)
    tolerances = {torch.float32: 3e-5} if device == "cuda" else {torch.float64: 1e-12, torch.float32: 3e-5}
    for dtype, tolerance in tolerances.items():
        found, gradients = run(case.to(device, dtype), options, True, dtype, 8, 64)
        assert found == pytest.approx(expected, rel=tolerance)
        for one, other in zip(gradients, expected_gradients, strict=True):
            assert distance(one, other) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_sixteen_bits_lose_no_more_than_their_rounding(device: str, divergence: Divergence) -> None:
    options = SoftmaxOptions(2.0, 1.0, 0.4, False, True, divergence, 0.5)
    case = new_case(tokens=200, words=3000).to("cpu", torch.bfloat16)  # the inputs are exact, what is made of them not
    expected, expected_gradients = exact(case, options, True)
    found, gradients = run(case.to(device), options, True, torch.bfloat16, 64, 64)
    assert found == pytest.approx(expected, rel=2e-3)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert distance(one, other) < 2e-2


def test_rows_and_sums_are_those_of_the_log() -> None:
    case, options = new_case(), SoftmaxOptions(2.0, 1.0, 0.4, False, True)
    total, sums = VocabularyPass.apply(
        case.hidden, case.weight, case.bias, case.teacher, case.labels, options, torch.float64, 16, 1
    )
    assert total.item() == pytest.approx((2.0 * sums[0] + 0.4 * sums[1]).item())
    assert not sums.requires_grad


def test_the_backward_pass_scales_with_what_follows() -> None:
    case, options = new_case(), SoftmaxOptions(2.0, 1.0, 0.4, False, True)
    once = run(case.to("cpu", torch.float64), options, True, torch.float64, 16, 1)[1]
    again = case.to("cpu", torch.float64)
    total, _ = VocabularyPass.apply(
        again.hidden, again.weight, again.bias, again.teacher, again.labels, options, torch.float64, 16, 1
    )
    (3 * total).backward()
    for one, three in zip(once, again.gradients(), strict=True):
        torch.testing.assert_close(three, 3 * one)


def test_a_frozen_projection_gets_no_gradient_and_a_missing_bias_is_none() -> None:
    case, options = new_case(), SoftmaxOptions(2.0, 1.0, 0.4, False, True)
    case.weight.requires_grad_(False)
    teacher = case.teacher._replace(bias=None)
    total, _ = VocabularyPass.apply(case.hidden, case.weight, None, teacher, case.labels, options, torch.float64, 16, 1)
    total.backward()
    assert case.weight.grad is None
    logits = case.hidden.detach().requires_grad_()
    p, q = (F.log_softmax(z / 2, dim=-1) for z in (teacher.hidden @ teacher.weight.T, logits @ case.weight.T))
    hard = F.cross_entropy(logits @ case.weight.T, case.labels, reduction="sum")
    (2 * (p.exp() * (p - q)).sum() + 0.4 * hard).backward()
    torch.testing.assert_close(case.hidden.grad, logits.grad)


def test_tied_and_untied_projections_both_get_their_gradient() -> None:
    words, width, (blocks, length, masked) = 50, 8, (2, 6, 2)
    table = torch.randn(words, width, dtype=torch.float64, requires_grad=True)
    separate = torch.randn(words, width, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(words, (blocks, length))
    positions = torch.stack([torch.randperm(length)[:masked] for _ in range(blocks)])
    labels = torch.randint(words, (blocks, masked))

    def loss_of(table: Tensor, projection: Tensor, fast: bool) -> Tensor:
        hidden = torch.tanh(table[ids])
        if fast:
            head = VocabularyHead(lambda h: h, projection, None)
            return Vocabulary(hard_labels=MaskedLM()).value(
                Batch(Encoded({-1: hidden}, {}, head), None, positions, labels)
            )
        chosen = hidden.gather(1, positions[..., None].expand(-1, -1, width))
        return F.cross_entropy((chosen @ projection.T).flatten(0, 1), labels.flatten())

    for projection in (table, separate):
        parts = [table] if projection is table else [table, separate]
        fast, plain = (torch.autograd.grad(loss_of(table, projection, fast), parts) for fast in (True, False))
        for one, other in zip(fast, plain, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("blocks", "padded"), [(4, 64), (5, 128)])
def test_many_tokens_on_a_cpu_have_a_padded_vocabulary(
    blocks: int, padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses and gradients stay those of the vocabulary as it is. 4 blocks of 60 tokens are too few to pad."""
    words, width, length, masked = 70, 16, 60, 9
    shapes = []
    plain = softmax("cpu")

    def noting(student: Tensor, *rest: object) -> None:
        shapes.append(student.shape[1])
        plain(student, *rest)

    monkeypatch.setattr("potstill.objective.chunks.softmax", lambda device_type: noting)
    hidden, taught = (torch.randn(blocks, length, width) for _ in range(2))
    weight, taught_weight = torch.randn(words, width), torch.randn(words, width)
    bias, taught_bias = torch.randn(words), torch.randn(words)
    positions = torch.stack([torch.randperm(length)[:masked] for _ in range(blocks)])
    labels = torch.randint(words, (blocks, masked))
    leaves = [one.clone().requires_grad_() for one in (hidden, weight, bias)]
    student = Encoded({-1: leaves[0]}, {}, VocabularyHead(lambda h: h, leaves[1], leaves[2]))
    teacher = Encoded({-1: taught}, {}, VocabularyHead(lambda h: h, taught_weight, taught_bias))
    found = Vocabulary(soft_targets=SoftTargets(), hard_labels=MaskedLM()).value(
        Batch(student, teacher, positions, labels)
    )
    found.backward()
    assert set(shapes) == {128 if padded == 128 else words}

    exact = [one.double().requires_grad_() for one in (hidden, weight, bias)]
    logits = exact[0] @ exact[1].T + exact[2]
    targets = taught.double() @ taught_weight.double().T + taught_bias.double()
    p, q = torch.softmax(targets / 2, -1), torch.log_softmax(logits / 2, -1)
    chosen = logits.gather(1, positions[..., None].expand(-1, -1, words))
    expected = 4 * (p * (p.log() - q)).sum(-1).mean() + F.cross_entropy(chosen.flatten(0, 1), labels.flatten())
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(leaves, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-7)


def test_logits_never_exist_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case, options, seen = new_case(tokens=100), SoftmaxOptions(2.0, 1.0, 0.4, False, True), []
    plain = softmax("cpu")

    def noting(student: Tensor, *rest: object) -> None:
        seen.append(tuple(student.shape))
        plain(student, *rest)

    monkeypatch.setattr("potstill.objective.chunks.softmax", lambda device_type: noting)
    run(case, options, True, torch.float64, 16, 1)
    assert max(rows for rows, _ in seen) == 16
    assert sum(rows for rows, _ in seen) == 100


def test_chunks_are_alike_and_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabulary.LOGITS_BYTES, "cuda", 2**30)
    sizes = {
        tokens: vocabulary._chunk_size(tokens, 30522, torch.bfloat16, "cuda") for tokens in (1, 100, 17_000, 65_536)
    }
    assert sizes == {1: 8, 100: 104, 17_000: 8504, 65_536: 8192}
    assert vocabulary._chunk_size(10, 10**10, torch.float32, "cpu") == 8


@pytest.mark.parametrize("missing", ["triton", "compiler"])
def test_a_gpu_without_what_the_kernel_needs_does_without_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("potstill.objective.triton_softmax")
    module.triton_softmax_losses_ = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, None if missing == "triton" else module)
    if missing == "compiler":
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        monkeypatch.setattr("shutil.which", lambda name: name)
    softmax.cache_clear()
    with pytest.warns(UserWarning, match=missing):
        assert softmax("cuda") is softmax("cpu")
    softmax.cache_clear()


@pytest.mark.gpu
def test_the_kernel_does_what_the_plain_version_does() -> None:
    from potstill.objective.softmax import softmax_losses_
    from potstill.objective.triton_softmax import triton_softmax_losses_

    for words, padded in ((30522, 30528), (8192, 8192), (119547, 119552), (70, 128)):
        student, teacher = (torch.randn(9, padded, device="cuda") * 6 for _ in range(2))
        labels = torch.tensor([0, -100, words - 1, 5, -100, 1, 2, 3, -100], device="cuda")
        for options in (
            SoftmaxOptions(2.0, 0.8, 0.3, False, True),
            SoftmaxOptions(1.0, 0.8, 0.3, True, True),
            SoftmaxOptions(2.0, 0.8, 0.3, False, True, "reverse_kl"),
            SoftmaxOptions(1.0, 0.8, 0.3, True, True, "reverse_kl", 0.5, False),
            SoftmaxOptions(2.0, 0.8, 0.3, False, True, "jensen_shannon", 0.5, True),
            SoftmaxOptions(1.0, 0.8, 0.0, True, True, "jensen_shannon"),
            SoftmaxOptions(1.0, 0.0, 0.3, False, True, "forward_kl", 0.5),
        ):
            results = []
            for function in (softmax_losses_, triton_softmax_losses_):
                gradient, losses = student.clone(), torch.zeros(3 if options.squared_scale else 2, 9, device="cuda")
                function(gradient, teacher.clone(), labels, losses, words, options)
                results.append((gradient, losses))
            (gradient, losses), (other_gradient, other_losses) = results
            torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=5e-6)
            assert not other_gradient[:, words:].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_distributions_that_hardly_overlap_have_finite_losses(device: str, divergence: Divergence) -> None:
    """Logits of ±60: the probabilities underflow, their logarithms must not."""
    case = new_case(tokens=9, words=70)
    for part in (case.hidden, case.weight, case.teacher.hidden, case.teacher.weight):
        part.data.mul_(3.5)
    options = SoftmaxOptions(1.0, 1.0, 0.4, False, True, divergence)
    expected, expected_gradients = exact(case, options, True)
    found, gradients = run(case.to(device), options, True, torch.float32, 8, 64)
    assert found == pytest.approx(expected, rel=1e-4)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert distance(one, other) < 1e-4
