"""Several teachers as one, against the same written out in float64 over whole logits, on fresh numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig

from potstill import PotstillError
from potstill.objective import (
    AttentionRelations,
    Batch,
    Encoded,
    Ensemble,
    HiddenCosine,
    HiddenMSE,
    Mean,
    Objective,
    Term,
    objective_from,
    vocabulary,
)
from potstill.objective.chunks import Projection, VocabularyPass
from potstill.objective.ensemble import mean_of_probabilities_
from potstill.objective.softmax import Divergence, SoftmaxOptions
from potstill.student import AttentionInputs, VocabularyHead

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BLOCKS, LENGTH, MASKED, VOCAB = 3, 7, 2, 101
WIDTHS = (24, 16, 40)
WEIGHTS = (2.0, 1.0, 0.5)
MEANS: list[Mean] = ["probabilities", "logits"]


def new_model(width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, projection and bias, the logits of which differ by several units; the narrowest has no bias."""
    bias = torch.randn(VOCAB, dtype=torch.float64) if width > 16 else None
    hidden = torch.randn(BLOCKS, LENGTH, width, dtype=torch.float64)
    return hidden, torch.randn(VOCAB, width, dtype=torch.float64) * (8 / width) ** 0.5, bias


def encoded(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Encoded:
    return Encoded({-1: hidden}, {}, VocabularyHead(torch.tanh, weight, bias))


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = torch.tanh(hidden) @ weight.T
    return logits if bias is None else logits + bias


def mean_log_probabilities(logits: list[Tensor], mean: str, temperature: float) -> Tensor:
    """The ensemble's log-probabilities at a temperature."""
    weights = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    if mean == "logits":
        return F.log_softmax(sum(w * z for w, z in zip(weights, logits, strict=True)) / temperature, dim=-1)
    return sum(w * F.softmax(z / temperature, dim=-1) for w, z in zip(weights, logits, strict=True)).log()


def divergence_of(kind: str, p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities of the teacher and of the student."""
    m = ((p.exp() + q.exp()) / 2).log()
    return {
        "forward_kl": (p.exp() * (p - q)).sum(-1),
        "reverse_kl": (q.exp() * (q - p)).sum(-1),
        "jensen_shannon": ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2,
    }[kind]


def naive(losses: dict[str, Any], student: list[Any], teachers: list[Any], places: Tensor, labels: Tensor, mean: str):
    """The sum of the losses from whole logits."""
    ours, theirs = logits_of(*student), [logits_of(*teacher) for teacher in teachers]
    masked = torch.zeros(BLOCKS, LENGTH, dtype=torch.bool).scatter(1, places, True)
    total = torch.zeros((), dtype=torch.float64)
    if soft := losses.get("soft_targets"):
        t = soft["temperature"]
        values = divergence_of(
            soft["divergence"], mean_log_probabilities(theirs, mean, t), F.log_softmax(ours / t, dim=-1)
        )
        total = total + soft["weight"] * t**2 * (values if soft["tokens"] == "all" else values[masked]).mean()
    if "masked_lm" in losses:
        at = ours.gather(1, places[..., None].expand(-1, -1, VOCAB)).flatten(0, 1)
        total = total + losses["masked_lm"] * F.cross_entropy(at, labels.flatten())
    if squared := losses.get("logits_mse"):
        target = sum(w * z for w, z in zip(WEIGHTS, theirs, strict=True)) / sum(WEIGHTS)
        values = (ours - target).square().mean(-1)
        total = total + squared["weight"] * (values if squared["tokens"] == "all" else values[masked]).mean()
    return total


SOFT = {"weight": 3.0, "temperature": 2.0, "tokens": "all", "divergence": "forward_kl"}
LOSSES: list[dict[str, Any]] = [
    {"soft_targets": SOFT},
    {"soft_targets": SOFT | {"temperature": 1.0, "tokens": "masked"}},
    {"soft_targets": SOFT | {"temperature": 0.7}, "masked_lm": 2.0},
    {"soft_targets": SOFT | {"divergence": "reverse_kl", "temperature": 3.5}, "masked_lm": 2.0},
    {"soft_targets": SOFT | {"divergence": "jensen_shannon", "tokens": "masked"}},
    {"logits_mse": {"weight": 0.5, "tokens": "all"}, "masked_lm": 1.0},
    {"soft_targets": SOFT, "logits_mse": {"weight": 0.5, "tokens": "masked"}, "masked_lm": 1.0},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("losses", LOSSES, ids=range(len(LOSSES)))
def test_losses_and_gradients_are_those_of_the_mean(
    losses: dict[str, Any], mean: Mean, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vocabulary.LOGITS_BYTES, "cuda", 40_000)  # several chunks
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES_ELSEWHERE", 40_000)
    models = [new_model(width) for width in (20, *WIDTHS)]  # four widths
    places = torch.stack([torch.randperm(LENGTH)[:MASKED] for _ in range(BLOCKS)])
    labels = torch.randint(VOCAB, (BLOCKS, MASKED))
    student = [tensor.requires_grad_() for tensor in models[0]]
    expected = naive(losses, student, models[1:], places, labels, mean)
    gradients = torch.autograd.grad(expected, student)
    dtype, tolerance = (torch.float64, 1e-10) if device == "cpu" else (torch.float32, 2e-5)
    moved = [[None if t is None else t.detach().to(device, dtype) for t in model] for model in models]
    leaves = [tensor.requires_grad_() for tensor in moved[0]]
    found = objective_from(losses)(
        encoded(*leaves),
        [encoded(*teacher) for teacher in moved[1:]],
        places.to(device),
        labels.to(device),
        ensemble=Ensemble.of(3, WEIGHTS, mean),
    )
    found["loss"].backward()
    assert found["loss"].item() == pytest.approx(expected.item(), rel=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert ((leaf.grad.double().cpu() - gradient).norm() / gradient.norm()).item() < tolerance


def test_one_teacher_thrice_is_that_teacher() -> None:
    student, teacher = (encoded(*new_model(24)) for _ in range(2))
    places, labels = torch.zeros(BLOCKS, 1, dtype=torch.int64), torch.randint(VOCAB, (BLOCKS, 1))
    objective = objective_from({"soft_targets": SOFT, "logits_mse": 1, "hidden_cosine": 1, "hidden_mse": 1})
    alone = objective(student, [teacher], places, labels)
    for mean in MEANS:
        together = objective(student, [teacher] * 3, places, labels, ensemble=Ensemble.of(3, WEIGHTS, mean))
        assert together.keys() == alone.keys()
        for name, value in together.items():
            torch.testing.assert_close(value, alone[name], msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("size", [0.0, 0.3, 6.0, 60.0])
def test_the_padding_gets_no_probability(size: float, temperature: float, device: str) -> None:
    """From flat distributions to such as hardly overlap, whose probabilities underflow."""
    logits = torch.randn(3, 5, 128, dtype=torch.float64) * size
    logits[..., 101:] = 1000.0
    weights = Ensemble.of(3, WEIGHTS).weights
    expected = mean_log_probabilities(list(logits[..., :101]), "probabilities", temperature)
    if not expected.isfinite().all():  # the logarithm of what has underflown
        each = [
            math.log(w) + F.log_softmax(z[..., :101] / temperature, -1) for w, z in zip(weights, logits, strict=True)
        ]
        expected = torch.stack(each).logsumexp(0)
    found = logits.to(device, torch.float32)
    mix = mean_of_probabilities_
    if device == "cuda":
        from potstill.objective.triton_mean import triton_mean_of_probabilities_ as mix
    mix(found, weights, temperature, 101)
    torch.testing.assert_close(
        F.log_softmax(found[0, :, :101].double().cpu() / temperature, -1), expected, atol=1e-4, rtol=1e-5
    )
    assert (found[..., 101:] == 1000.0).all()
    assert -1e-4 <= found[0, :, :101].amax(-1).min().item() <= found[0, :, :101].max().item() <= 1.2 * temperature


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_sixteen_bits_lose_no_more_than_with_one_teacher(
    spread: float, divergence: Divergence, mean: Mean, device: str
) -> None:
    """The gradient's distance from that in float64, of flat distributions and of sharper ones."""
    tokens, words, width = 200, 3000, 24

    def projection() -> Projection:
        parts = torch.randn(tokens, width), torch.randn(words, width) * spread, torch.randn(words) * spread
        return Projection(*(part.bfloat16() for part in parts))  # exact; what is made of them is not

    student, *teachers = (projection() for _ in range(4))
    labels = torch.full((tokens,), -100)
    options = SoftmaxOptions(2.0, 1.0, 0.0, False, True, divergence)

    def run(teachers: list[Projection], dtype: torch.dtype, device: str) -> Tensor:
        leaves = [part.to(device, dtype).clone().requires_grad_() for part in student]
        moved = [Projection(*(part.to(device, dtype) for part in one)) for one in teachers]
        weights = WEIGHTS[: len(moved)]
        targets = Ensemble.of(len(moved), weights, mean).targets(moved, 2.0)
        total, _ = VocabularyPass.apply(*leaves, targets, labels.to(device), options, dtype, 64, 64)
        total.backward()
        return leaves[0].grad.double().cpu()

    def error(teachers: list[Projection]) -> float:
        exact = run(teachers, torch.float64, "cpu")
        return ((run(teachers, torch.bfloat16, device) - exact).norm() / exact.norm()).item()

    assert error(teachers) < 1.5 * error(teachers[:1]) + 2e-3


def test_several_teachers_never_have_all_their_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noting(logits: Tensor, *rest: Any) -> None:
        seen.append(tuple(logits.shape))
        mean_of_probabilities_(logits, *rest)

    monkeypatch.setattr("potstill.objective.ensemble.mean_of_probabilities_", noting)
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES_ELSEWHERE", 4 * VOCAB * 8 * 8)  # four matrices of eight tokens
    student, *teachers = (encoded(*new_model(24)) for _ in range(4))
    places, labels = torch.zeros(BLOCKS, 1, dtype=torch.int64), torch.randint(VOCAB, (BLOCKS, 1))
    objective_from({"soft_targets": SOFT})(student, teachers, places, labels)
    assert seen == [(3, 8, VOCAB), (3, 8, VOCAB), (3, 5, VOCAB)]


def test_a_term_is_the_weighted_mean_of_its_values_against_each_teacher() -> None:
    head = VocabularyHead(lambda hidden: hidden, torch.zeros(1), None)
    inputs = [AttentionInputs(*(torch.randn(2, 4, 6) for _ in range(3)), 2) for _ in range(4)]
    student, *teachers = (Encoded({}, {-1: one}, head) for one in inputs)
    nothing, ensemble = torch.empty(0), Ensemble.of(3, WEIGHTS)
    found = objective_from({"attention_relations": 2})(student, teachers, nothing, nothing, ensemble=ensemble)
    values = [AttentionRelations().value(Batch(student, teacher, nothing, nothing)) for teacher in teachers]
    expected = sum(w * value for w, value in zip(WEIGHTS, values, strict=True)) / sum(WEIGHTS)
    torch.testing.assert_close(found["attention_relations"], expected)
    torch.testing.assert_close(found["loss"], 2 * expected)


@pytest.mark.parametrize("term", [HiddenMSE(weight=2), HiddenCosine(weight=2)])
def test_hidden_states_themselves_are_compared_with_the_first_teacher(term: Term) -> None:
    head = VocabularyHead(lambda hidden: hidden, torch.zeros(1), None)
    student, *teachers = (Encoded({-1: torch.randn(2, 4, 6)}, {}, head) for _ in range(4))
    nothing, ensemble = torch.empty(0), Ensemble.of(3, WEIGHTS)
    found = Objective([term])(student, teachers, nothing, nothing, ensemble=ensemble)["loss"]
    torch.testing.assert_close(found, 2 * term.value(Batch(student, teachers[0], nothing, nothing)))


def test_a_further_teacher_of_another_width_needs_no_cosine() -> None:
    objective = objective_from({"hidden_cosine": 1})
    objective.check(BertConfig(hidden_size=36), BertConfig(hidden_size=24), number=1)
    with pytest.raises(PotstillError, match="hidden states of equal width"):
        objective.check(BertConfig(hidden_size=36), BertConfig(hidden_size=24))


def test_each_teacher_has_a_projection_of_its_own() -> None:
    objective = objective_from({"hidden_mse": 1, "masked_lm": 1})
    student, same, wide, wider = (BertConfig(hidden_size=size) for size in (24, 24, 36, 48))
    modules = objective.modules([wider, same, wide], student)
    assert {name: tuple(tensor.shape) for name, tensor in modules.state_dict().items()} == {
        "hidden_mse.0.weight": (48, 24),
        "hidden_mse.0.bias": (48,),
        "hidden_mse 3.0.weight": (36, 24),
        "hidden_mse 3.0.bias": (36,),
    }
    alone = objective.modules([wider], student).state_dict()
    assert all(torch.equal(tensor, modules.state_dict()[name]) for name, tensor in alone.items())

    head = VocabularyHead(lambda hidden: hidden, torch.zeros(1), None)
    ours, *theirs = (Encoded({-1: torch.randn(2, 4, width)}, {}, head) for width in (24, 48, 24, 36))
    nothing = torch.empty(0)
    found = Objective([HiddenMSE()])(ours, theirs, nothing, nothing, modules)["loss"]

    def mse(hidden: Tensor, module: nn.Module | None, target: Encoded) -> Tensor:
        return F.mse_loss(hidden if module is None else module(hidden), target.last)

    first, third = modules["hidden_mse"][0], modules["hidden_mse 3"][0]
    # The second teacher has the student's width, so nothing maps the student to it, and it takes no part.
    values = [mse(ours.last, first, theirs[0]), mse(ours.last, third, theirs[2])]
    torch.testing.assert_close(found, torch.stack(values).mean())


@pytest.mark.parametrize(
    ("count", "weights", "mean", "told"),
    [
        (3, [1, 2], "logits", "--teacher_weights has 2 numbers, but there are 3 teachers"),
        (1, [1, 2], "logits", "--teacher_weights has 2 numbers, but there is 1 teacher"),
        (2, [1, 0], "logits", "--teacher_weights has 0: each weight must be above 0"),
        (2, [1, -2.5], "logits", "--teacher_weights has -2.5"),
        (2, [1, math.nan], "logits", "--teacher_weights has nan"),
        (2, [math.inf, 1], "logits", "--teacher_weights has inf"),
        (2, None, "median", "--teacher_mean is 'median': it must be 'probabilities' or 'logits'"),
    ],
)
def test_what_cannot_be_is_told(count: int, weights: list[float] | None, mean: Any, told: str) -> None:
    with pytest.raises(PotstillError, match=told):
        Ensemble.of(count, weights, mean)


def test_weights_add_up_to_one() -> None:
    assert Ensemble.of(3, [2, 1, 1]).weights == (0.5, 0.25, 0.25)
    assert Ensemble.of(4).weights == (0.25,) * 4
    assert Ensemble.of(0) == Ensemble.of(1) == Ensemble()
