"""The losses of rerankers, against plain computations in float64: values and gradients; and how they are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.objective.ranking import RANKING_LOSSES, RankedBatch, RankingObjective

SIZES = (4, 1, 2, 7)


def batch_of(sizes: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> RankedBatch:
    """Lists of random scores; the rows of a list do not follow each other."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    rows = torch.randperm(count, generator=generator).split(sizes)
    places = torch.full((len(sizes), max(sizes)), -1)
    for number, part in enumerate(rows):
        places[number, : len(part)] = part
    scores, teacher = (3 * torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(2))
    relevant = (torch.rand(count, generator=generator) < 0.4).to(dtype)
    return RankedBatch(scores.to(dtype).requires_grad_(), places, teacher.to(dtype), relevant)


def softmax(values: list[Tensor]) -> list[Tensor]:
    total = sum(value.exp() for value in values)
    return [value.exp() / total for value in values]


def plain(name: str, batch: RankedBatch, temperature: float = 1.0) -> Tensor:
    """The loss, written with loops over single numbers."""
    scores, teacher, relevant = batch.scores.double(), batch.teacher, batch.relevant
    assert teacher is not None
    assert relevant is not None
    teacher, relevant = teacher.double(), relevant.double()
    lists = [[int(place) for place in row if place >= 0] for row in batch.places]
    if name == "labels":
        chances = [1 / (1 + (-score).exp()) for score in scores]
        pairs = zip(chances, relevant, strict=True)
        return -torch.stack([mark * p.log() + (1 - mark) * (1 - p).log() for p, mark in pairs]).mean()
    if name == "score_mse":
        return torch.stack([(one - other) ** 2 for one, other in zip(scores, teacher, strict=True)]).mean()
    found = []
    for rows in lists:
        if len(rows) < 2:
            continue
        if name == "margin_mse":
            margins = [((scores[i] - scores[j]) - (teacher[i] - teacher[j])) ** 2 for i in rows for j in rows if i < j]
            found.append(torch.stack(margins).mean())
        else:
            p = softmax([teacher[row] / temperature for row in rows])
            q = softmax([scores[row] / temperature for row in rows])
            found.append(temperature**2 * torch.stack([a * (a / b).log() for a, b in zip(p, q, strict=True)]).sum())
    return torch.stack(found).mean()


@pytest.mark.parametrize("name", RANKING_LOSSES)
@pytest.mark.parametrize("sizes", [SIZES, (2, 2, 2), (9,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_a_plain_computation(
    name: str, sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch = batch_of(sizes, seed=len(sizes), dtype=dtype)
    options: dict[str, Any] = {"temperature": 1.7} if name == "list_kl" else {}
    value = RANKING_LOSSES[name](**options).value(batch)
    expected = plain(name, batch, **options)
    close = {"rel": 1e-9, "abs": 1e-12} if dtype == torch.float64 else {"rel": 2e-5, "abs": 1e-6}
    assert value.item() == pytest.approx(expected.item(), **close)
    gradients = [torch.autograd.grad(loss, batch.scores, retain_graph=True)[0].double() for loss in (value, expected)]
    assert gradients[0].tolist() == pytest.approx(gradients[1].tolist(), **close)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("name", ["margin_mse", "list_kl"])
def test_lists_of_one_passage_teach_nothing(name: str) -> None:
    batch = batch_of((1, 1), seed=0)
    value = RANKING_LOSSES[name]().value(batch)
    assert value.item() == 0
    assert torch.autograd.grad(value, batch.scores)[0].tolist() == [0, 0]


def test_the_objective_is_the_weighted_sum() -> None:
    batch = batch_of(SIZES, seed=5)
    objective = RankingObjective.read({"margin_mse": 2, "labels": {"weight": "0.5"}, "list_kl": 0}, taught=True)
    assert batch.teacher is not None
    columns = {"places": batch.places, "soft": batch.teacher, "labels": batch.relevant}
    losses = objective(batch.scores[:, None], columns)
    assert set(losses) == {"loss", "margin_mse", "labels"}
    expected = 2 * plain("margin_mse", batch) + 0.5 * plain("labels", batch)
    assert losses["loss"].item() == pytest.approx(expected.item())
    assert losses["labels"].item() == pytest.approx(plain("labels", batch).item())
    assert not losses["labels"].requires_grad
    again = RankingObjective.read(objective.options, taught=True)
    assert again == objective


def test_half_precision_is_computed_in_float32() -> None:
    batch = batch_of(SIZES, seed=6, dtype=torch.float32)
    assert batch.teacher is not None
    columns = {"places": batch.places, "soft": batch.teacher.bfloat16(), "labels": batch.relevant}
    loss = RankingObjective.read({"score_mse": 1}, taught=True)(batch.scores[:, None].bfloat16(), columns)["loss"]
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


@pytest.mark.parametrize(
    ("losses", "taught", "message"),
    [
        ({"margin_msee": 1}, True, "there is no loss 'margin_msee'; did you mean margin_mse?"),
        ({"list_kl": {"temperature_": 2}}, True, "list_kl has no option 'temperature_'; did you mean temperature?"),
        ({"list_kl": {"temperature": 0}}, True, "temperature of list_kl is 0: it must be a number above 0."),
        ({"labels": 0}, False, "no loss has a weight above 0"),
        ({"labels": -1}, False, "weight of labels is -1"),
        ({}, False, "losses is {}: it must map names to weights or options, as in {margin_mse: 1, labels: 0.5}."),
        ({"score_mse": 1}, False, "score_mse compares with a teacher: name one with --teacher."),
        ({"labels": 1}, True, "none of them reads the scores of the teacher"),
    ],
)
def test_losses_that_cannot_be_are_refused(losses: Any, taught: bool, message: str) -> None:
    with pytest.raises(PotstillError) as caught:
        RankingObjective.read(losses, taught)
    assert message in str(caught.value)
