"""The losses of embeddings against naive versions in float64: forward, backward, and with widths that differ."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from potstill.errors import PotstillError
from potstill.objective import Batch, Encoded, HiddenCosine, HiddenMSE, Objective, Term, objective_from
from potstill.objective.embeddings import EmbeddingCosine, EmbeddingMSE, Similarities
from potstill.student import Rows

FIRST, PAD, SLOTS, PER_BLOCK = 2, 0, 3, 1.7
LENGTHS = [[3, 4, 2], [9], [5, 1], [2, 6]]


def texts() -> Rows:
    ids = torch.full((4, 9), PAD)
    for row, lengths in zip(ids, LENGTHS, strict=True):
        start = 0
        for length in lengths:
            row[start : start + length] = 5
            row[start] = FIRST
            start += length
    return Rows.of(ids, FIRST, PAD, SLOTS, PER_BLOCK)


def config(width: int, hidden: int = 6) -> BertConfig:
    made = BertConfig(hidden_size=hidden, num_hidden_layers=2, num_attention_heads=1)
    made.embedding_width = width
    return made


def sample(seed: int, widths: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Encoded, Encoded]:
    """Student and teacher: hidden states (4, 9, width) and embeddings (12, width), zero where no text is."""
    generator = torch.Generator().manual_seed(seed)
    rows = texts()
    found = []
    for width in widths:
        hidden, pooled = (
            torch.randn(*shape, width, generator=generator, dtype=torch.float64) for shape in ((4, 9), (12,))
        )
        pooled[~rows.filled] = 0
        hidden, pooled = hidden.to(dtype), pooled.to(dtype)
        states = {0: hidden.clone(), -1: hidden}
        found.append(Encoded(states, {}, None, rows, pooled))
    for tensor in (*found[0].hidden.values(), found[0].pooled):
        tensor.requires_grad_(True)
    return found[0], found[1]


def value(term: Term, student: Encoded, teacher: Encoded, trained: torch.nn.Module | None = None) -> Tensor:
    none = torch.empty(4, 0, dtype=torch.long)
    return term.value(Batch(student, teacher, none, none, trained))


def cosine(student: np.ndarray, teacher: np.ndarray) -> float:
    return float(student @ teacher / math.sqrt(student @ student) / math.sqrt(teacher @ teacher))


def naive_cosine(student: np.ndarray, teacher: np.ndarray) -> float:
    return sum(1 - cosine(*pair) for pair in zip(student, teacher, strict=True))


def naive_mse(student: np.ndarray, teacher: np.ndarray) -> float:
    return sum(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(student, teacher, strict=True))


def naive_similarities(student: np.ndarray, teacher: np.ndarray, scale: float = 20.0) -> float:
    total = 0.0
    for one in range(len(student)):
        logs = []
        for side in (teacher, student):
            logits = {other: scale * cosine(side[one], side[other]) for other in range(len(side)) if other != one}
            normaliser = math.log(sum(math.exp(logit) for logit in logits.values()))
            logs.append({other: logit - normaliser for other, logit in logits.items()})
        total += sum(math.exp(logs[0][other]) * (logs[0][other] - logs[1][other]) for other in logs[0])
    return total


NAIVE: dict[type[Term], Callable[..., float]] = {
    EmbeddingCosine: naive_cosine,
    EmbeddingMSE: naive_mse,
    Similarities: naive_similarities,
}


@pytest.mark.parametrize("widths", [(5, 5), (4, 7)], ids=["equal", "different"])
@pytest.mark.parametrize("kind", NAIVE, ids=lambda kind: kind.name)
def test_each_loss_is_what_it_says(kind: type[Term], widths: tuple[int, int]) -> None:
    student, teacher = sample(len(kind.name) + widths[0], widths)
    filled = student.rows.filled
    term = kind()
    trained = term.module(config(widths[1]), config(widths[0]))
    assert (trained is None) == (widths[0] == widths[1] or kind is Similarities)
    matrix = np.eye(widths[0]) if trained is None else trained.double().weight.detach().numpy()

    def expected(embeddings: np.ndarray, matrix: np.ndarray) -> float:
        return NAIVE[kind](embeddings @ matrix.T, teacher.pooled[filled].numpy()) / (4 * PER_BLOCK)

    loss = value(term, student, teacher, trained)
    ours = student.pooled.detach()[filled].numpy()
    assert loss.item() == pytest.approx(expected(ours, matrix), rel=1e-10)

    loss.backward()
    assert (student.pooled.grad[~filled] == 0).all()
    step = 1e-6
    for changed, gradient in (
        (ours, student.pooled.grad[filled]),
        *([] if trained is None else [(matrix, trained.weight.grad)]),
    ):
        naive = np.zeros(changed.shape)
        for at in np.ndindex(changed.shape):
            before = changed[at]
            values = []
            for moved in (before + step, before - step):
                changed[at] = moved
                values.append(expected(ours, matrix))
            changed[at] = before
            naive[at] = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(gradient.numpy(), naive, atol=2e-7)


@pytest.mark.parametrize("kind", NAIVE, ids=lambda kind: kind.name)
def test_what_stands_where_there_is_no_text_does_not_count(kind: type[Term]) -> None:
    student, teacher = sample(3, (5, 5))
    expected = value(kind(), student, teacher)
    with torch.no_grad():
        student.pooled[~student.rows.filled] = 3.0  # a Dense module with a bias makes something of nothing
        teacher.pooled[~student.rows.filled] = -1.0
    torch.testing.assert_close(value(kind(), student, teacher), expected)


def test_a_text_that_is_alone_resembles_nothing() -> None:
    ids = torch.tensor([[FIRST, 5, PAD]])
    rows = Rows.of(ids, FIRST, PAD, 2)
    pooled = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    student, teacher = (Encoded({}, {}, None, rows, side) for side in (pooled, torch.randn(2, 4, dtype=torch.float64)))
    loss = value(Similarities(), student, teacher)
    loss.backward()
    assert loss.item() == 0
    assert (pooled.grad == 0).all()


def test_a_sharp_scale_leaves_a_text_itself_out() -> None:
    student, teacher = sample(5, (5, 5))
    filled = student.rows.filled
    loss = value(Similarities(scale=200.0), student, teacher).item()
    sides = (side.pooled.detach()[filled].numpy() for side in (student, teacher))
    assert loss == pytest.approx(naive_similarities(*sides, scale=200.0) / (4 * PER_BLOCK), rel=1e-9)
    assert torch.isfinite(value(Similarities(scale=1e6), student, teacher))


@pytest.mark.parametrize("scale", [0, -1, "inf", "much"])
def test_an_impossible_scale(scale: object) -> None:
    with pytest.raises(PotstillError, match=r"scale of similarities is .*: it must be a number above 0"):
        objective_from({"similarities": {"scale": scale}})


@pytest.mark.parametrize("widths", [(6, 6), (4, 6)], ids=["equal", "different"])
def test_hidden_states_are_compared_at_the_tokens_of_texts(widths: tuple[int, int]) -> None:
    student, teacher = sample(11, widths)
    inside = student.rows.inside
    places = [tuple(place) for place in inside.nonzero().tolist()]
    assert 0 < len(places) < inside.numel()
    term = HiddenMSE(layers={0: -1, -1: 0})
    trained = term.module(config(1, widths[1]), config(1, widths[0]))
    loss = value(term, student, teacher, None if trained is None else trained.double())
    total = 0.0
    for number, (ours, theirs) in enumerate(((0, -1), (-1, 0))):
        for block, place in places:
            state = student.hidden[ours][block, place].detach().numpy()
            if trained is not None:
                linear = trained[number]
                state = linear.weight.detach().numpy() @ state + linear.bias.detach().numpy()
            total += float(((state - teacher.hidden[theirs][block, place].numpy()) ** 2).mean())
    assert loss.item() == pytest.approx(total / 2 / inside.numel(), rel=1e-10)
    loss.backward()
    assert (student.hidden[0].grad[~inside] == 0).all()
    assert (student.hidden[0].grad[inside] != 0).any()

    if widths[0] == widths[1]:
        student, teacher = sample(12, widths)
        loss = value(HiddenCosine(), student, teacher)
        sides = [[side.last[place].detach().numpy() for place in places] for side in (student, teacher)]
        assert loss.item() == pytest.approx(naive_cosine(*map(np.array, sides)) / inside.numel(), rel=1e-10)
        loss.backward()
        assert (student.last.grad[~inside] == 0).all()


def test_the_mean_over_micro_batches_is_the_loss_of_the_batch() -> None:
    student, teacher = sample(13, (5, 5))
    for term in (EmbeddingCosine(), EmbeddingMSE()):
        parts = []
        for half in (slice(0, 2), slice(2, 4)):
            ids = torch.where(student.rows.positions == 0, FIRST, 5)
            ids[~student.rows.inside] = PAD
            rows = Rows.of(ids[half], FIRST, PAD, SLOTS, PER_BLOCK)
            of_half = slice(half.start * SLOTS, half.stop * SLOTS)
            sides = (Encoded({}, {}, None, rows, side.pooled[of_half]) for side in (student, teacher))
            parts.append(value(term, *sides))
        torch.testing.assert_close(torch.stack(parts).mean(), value(term, student, teacher))


def test_sums_of_half_precision_are_made_in_float32() -> None:
    widths = (4, 7)
    for kind in NAIVE:
        student, teacher = sample(17, widths)
        trained = kind().module(config(7), config(4))
        expected = value(kind(), student, teacher, None if trained is None else trained.double())
        short = [
            Encoded({}, {}, None, side.rows, side.pooled.detach().to(torch.bfloat16)) for side in (student, teacher)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            loss = value(kind(), *short, None if trained is None else trained.float())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=0.03, atol=0.01)


def test_the_objective_names_the_losses_and_what_it_trains() -> None:
    losses = {"embedding_cosine": 10, "embedding_mse": 2, "similarities": {"weight": 3, "scale": 10}, "hidden_mse": 1}
    objective = objective_from(losses)
    assert isinstance(objective, Objective)
    assert objective.student_reads.pooled
    assert objective.student_reads.hidden == {-1}
    modules = objective.modules([config(7, 8)], config(4, 6), seed=1)
    assert {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()} == {
        "embedding_cosine": 28,
        "embedding_mse": 28,
        "hidden_mse": 56,
    }
    student, teacher = sample(19, (4, 7))
    student = Encoded({-1: torch.randn(4, 9, 6)}, {}, None, student.rows, student.pooled.detach().float())
    teacher = Encoded({-1: torch.randn(4, 9, 8)}, {}, None, teacher.rows, teacher.pooled.float())
    none = torch.empty(4, 0, dtype=torch.long)
    found = objective(student, [teacher], none, none, modules)
    total = sum(objective.losses[name]["weight"] * found[name] for name in losses)
    torch.testing.assert_close(found["loss"], total)
