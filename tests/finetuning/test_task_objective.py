"""The losses of fine-tuning against a naive version in float64, values and gradients."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from potstill.finetuning.objective import NO_TAG, TaskObjective

ROWS, LENGTH, CLASSES, WIDTH = 6, 11, 4, 8


@pytest.fixture
def generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def naive_divergence(student: Tensor, teacher: Tensor, places: list[int], temperature: float) -> Tensor:
    """KL(teacher ‖ student) · T² of one row over some of its places, by its definition."""
    q, p = ([torch.exp(row[place] / temperature) for place in places] for row in (student, teacher))
    total_q, total_p = sum(q, torch.zeros(())), sum(p, torch.zeros(()))
    terms = [b / total_p * torch.log((b / total_p) / (a / total_q)) for a, b in zip(q, p, strict=True)]
    return temperature**2 * sum(terms, torch.zeros(()))


def naive_cross_entropy(row: Tensor, places: list[int], label: int) -> Tensor:
    return -torch.log(torch.exp(row[label]) / sum((torch.exp(row[place]) for place in places), torch.zeros(())))


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros(())) / len(values)


def compare(
    inputs: list[Tensor], ours: Callable[..., Tensor], naive: Callable[..., Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Compare two scalars and their gradients by each of the inputs, of which the naive one gets float64."""
    given = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    values = ours(*given), naive(*exact)
    assert values[0].dtype == torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, tensors) for value, tensors in zip(values, (given, exact), strict=True)]
    for mine, other in zip(*gradients, strict=True):
        assert torch.isfinite(mine).all()
        assert other.abs().sum() > 0
        torch.testing.assert_close(mine.double(), other, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_classes(generator: torch.Generator, temperature: float, dtype: torch.dtype) -> None:
    logits, teacher = 3 * torch.randn(2, ROWS, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    objective = TaskObjective(temperature=temperature)
    every = list(range(CLASSES))
    compare(
        [logits],
        lambda student: objective.sentence(student, labels, teacher)["ce"],
        lambda student: mean(
            [naive_divergence(student[n], teacher[n].double(), every, temperature) for n in range(ROWS)]
        ),
        dtype,
    )
    compare(
        [logits],
        lambda student: objective.sentence(student, labels)["task"],
        lambda student: mean([naive_cross_entropy(student[n], every, int(labels[n])) for n in range(ROWS)]),
        dtype,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_without_a_label_and_weights_of_classes(generator: torch.Generator, weighted: bool) -> None:
    logits, teacher = 3 * torch.randn(2, ROWS, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    labels[::3] = -100
    weights = 0.1 + 3 * torch.rand(CLASSES, generator=generator) if weighted else None
    objective = TaskObjective(alpha_ce=0.3, alpha_task=0.8)

    def ours(logits: Tensor) -> Tensor:
        return objective.sum_up(objective.sentence(logits, labels, teacher, weights))["loss"]

    def naive(logits: Tensor) -> Tensor:
        every, task, soft = list(range(CLASSES)), torch.zeros((), dtype=torch.float64), []
        for row, label in enumerate(labels.tolist()):
            soft.append(naive_divergence(logits[row], teacher[row].double(), every, objective.temperature))
            if label != -100:
                factor = 1.0 if weights is None else weights[label].item()
                task = task + factor * naive_cross_entropy(logits[row], every, label)
        return 0.8 * task / ROWS + 0.3 * mean(soft)

    compare([logits], ours, naive)


def test_rows_without_a_score(generator: torch.Generator) -> None:
    logits, teacher = torch.randn(2, ROWS, 1, generator=generator)
    labels = torch.randn(ROWS, generator=generator)
    labels[1::2] = math.nan
    objective = TaskObjective(alpha_ce=0.3, alpha_task=0.8)

    def naive(logits: Tensor) -> Tensor:
        task = [(logits[row, 0] - labels[row].double()) ** 2 for row in range(0, ROWS, 2)]
        soft = [(logits[row, 0] - teacher[row, 0].double()) ** 2 for row in range(ROWS)]
        return 0.8 * sum(task, torch.zeros(())) / ROWS + 0.3 * mean(soft)

    def ours(logits: Tensor) -> Tensor:
        return objective.sum_up(objective.sentence(logits, labels, teacher))["loss"]

    compare([logits], ours, naive)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_labels(generator: torch.Generator, temperature: float) -> None:
    logits, teacher = 3 * torch.randn(2, ROWS, CLASSES, generator=generator)
    labels = torch.randint(2, (ROWS, CLASSES), generator=generator).float()
    objective = TaskObjective(temperature=temperature)

    def task(logits: Tensor) -> Tensor:
        p = 1 / (1 + torch.exp(-logits))
        return -(labels * torch.log(p) + (1 - labels) * torch.log(1 - p)).sum() / labels.numel()

    def soft(logits: Tensor) -> Tensor:
        q, p = (1 / (1 + torch.exp(-of.double() / temperature)) for of in (logits, teacher))
        terms = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
        return temperature**2 * terms.sum() / labels.numel()

    compare([logits], lambda student: objective.labels(student, labels)["task"], task)
    compare([logits], lambda student: objective.labels(student, labels, teacher)["ce"], soft)

    some, weights = labels.clone(), 0.1 + 3 * torch.rand(CLASSES, generator=generator)
    some[::2] = math.nan

    def weighted(logits: Tensor) -> Tensor:
        p = 1 / (1 + torch.exp(-logits))
        each = weights.double() * labels * torch.log(p) + (1 - labels) * torch.log(1 - p)
        return -each[1::2].sum() / labels.numel()

    compare([logits], lambda student: objective.labels(student, some, teacher, weights)["task"], weighted)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_tags(generator: torch.Generator, temperature: float) -> None:
    logits, teacher = 3 * torch.randn(2, ROWS, LENGTH, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (ROWS, LENGTH), generator=generator)
    labels[torch.rand(ROWS, LENGTH, generator=generator) < 0.4] = NO_TAG
    labels[0], labels[1, 0] = NO_TAG, 2  # a sentence without a tag, and at least one tag
    objective, every = TaskObjective(temperature=temperature), list(range(CLASSES))
    places = [(row, at) for row in range(ROWS) for at in range(LENGTH) if labels[row, at] != NO_TAG]

    def task(logits: Tensor) -> Tensor:
        return mean([naive_cross_entropy(logits[place], every, int(labels[place])) for place in places])

    def soft(logits: Tensor) -> Tensor:
        return mean([naive_divergence(logits[place], teacher[place].double(), every, temperature) for place in places])

    compare([logits], lambda student: objective.tags(student, labels)["task"], task)
    compare([logits], lambda student: objective.tags(student, labels, teacher)["ce"], soft)

    weights = 0.1 + 3 * torch.rand(CLASSES, generator=generator)

    def weighted(logits: Tensor) -> Tensor:
        each = [
            weights[labels[place]] * naive_cross_entropy(logits[place], every, int(labels[place])) for place in places
        ]
        return mean(each)

    compare([logits], lambda student: objective.tags(student, labels, teacher, weights)["task"], weighted)
    nothing = objective.tags(logits.detach(), torch.full_like(labels, NO_TAG), teacher)
    assert [float(value) for value in nothing.values()] == [0, 0]


def test_scores(generator: torch.Generator) -> None:
    logits, teacher = torch.randn(2, ROWS, 1, generator=generator)
    labels = torch.randn(ROWS, generator=generator)
    objective = TaskObjective(temperature=3.0)
    for name, wanted in (("task", labels), ("ce", teacher[:, 0])):
        compare(
            [logits],
            lambda student, name=name: objective.sentence(student, labels, teacher)[name],
            lambda student, wanted=wanted: mean([(student[n, 0] - wanted[n].double()) ** 2 for n in range(ROWS)]),
        )


@pytest.mark.parametrize("soft_positions", ["answer", "all"])
def test_spans(generator: torch.Generator, soft_positions: Literal["answer", "all"]) -> None:
    start, end, teacher_start, teacher_end = 3 * torch.randn(4, ROWS, LENGTH, generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (ROWS,), generator=generator)
    inside = torch.arange(LENGTH) < lengths[:, None]
    answerable = inside & (torch.rand(ROWS, LENGTH, generator=generator) < 0.6)
    answerable[:, 0] = True
    answerable[0, 1:] = False  # a window that can only say that it holds no answer
    labels = (torch.rand(2, ROWS, generator=generator) * lengths).long()
    objective = TaskObjective(temperature=2.0, soft_positions=soft_positions)
    soft_at = answerable if soft_positions == "answer" else inside

    def naive_soft(*student: Tensor) -> Tensor:
        rows = [
            naive_divergence(logits[n], teacher[n].double(), soft_at[n].nonzero()[:, 0].tolist(), 2.0)
            for logits, teacher in zip(student, (teacher_start, teacher_end), strict=True)
            for n in range(ROWS)
        ]
        return mean(rows)

    def naive_hard(*student: Tensor) -> Tensor:
        rows = [
            naive_cross_entropy(logits[n], list(range(int(lengths[n]))), int(label[n]))
            for logits, label in zip(student, labels, strict=True)
            for n in range(ROWS)
        ]
        return mean(rows)

    for name, naive in (("ce", naive_soft), ("task", naive_hard)):
        compare(
            [start, end],
            lambda *student, name=name: objective.span(
                student, (labels[0], labels[1]), inside, answerable, (teacher_start, teacher_end)
            )[name],
            naive,
        )


def test_spans_do_not_see_padding(generator: torch.Generator) -> None:
    start, end, teacher_start, teacher_end = torch.randn(4, ROWS, LENGTH, generator=generator)
    inside = torch.arange(LENGTH).expand(ROWS, LENGTH) < LENGTH - 3
    zeros = torch.zeros(ROWS, dtype=torch.int64)
    objective = TaskObjective(soft_positions="all")

    def losses(filling: float) -> dict[str, Tensor]:
        tensors = [t.masked_fill(~inside, filling).requires_grad_() for t in (start, end, teacher_start, teacher_end)]
        found = objective.span((tensors[0], tensors[1]), (zeros, zeros), inside, inside, (tensors[2], tensors[3]))
        sum(found.values()).backward()
        assert all((tensor.grad[~inside] == 0).all() for tensor in tensors[:2])
        return found

    for name, value in losses(0.0).items():
        torch.testing.assert_close(value, losses(50.0)[name])


def test_hidden_states(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, ROWS, LENGTH, WIDTH, generator=generator)
    inside = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (ROWS, 1), generator=generator)

    def naive(mine: Tensor) -> Tensor:
        pairs = [(mine[n, t], teacher[n, t].double()) for n, t in inside.nonzero().tolist()]
        return mean([1 - (a * b).sum() / math.sqrt(float((b * b).sum())) / (a * a).sum().sqrt() for a, b in pairs])

    compare([student], lambda mine: TaskObjective().hidden(mine, teacher, inside), naive)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn_from_it(generator: torch.Generator) -> None:
    logits = torch.randn(ROWS, CLASSES, generator=generator, requires_grad=True)
    loss = TaskObjective().sentence(logits, torch.zeros(ROWS, dtype=torch.int64), logits.detach())["ce"]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


def test_the_weighted_sum() -> None:
    terms = {
        name: torch.tensor(value, requires_grad=True) for name, value in (("task", 2.0), ("ce", 3.0), ("cos", 5.0))
    }
    summed = TaskObjective(alpha_ce=0.1, alpha_task=0.2, alpha_cos=0.3).sum_up(terms)
    assert summed["loss"].item() == pytest.approx(0.2 * 2 + 0.1 * 3 + 0.3 * 5)
    assert not any(summed[name].requires_grad for name in terms)
    summed["loss"].backward()
    assert [float(term.grad) for term in terms.values()] == pytest.approx([0.2, 0.1, 0.3])
    # Without a teacher the task's own loss is unweighted.
    assert TaskObjective(alpha_task=0.2).sum_up({"task": terms["task"]})["loss"].item() == 2.0


def naive_squares(student: Tensor, teacher: Tensor, places: list[int]) -> Tensor:
    """The squared difference of logits, mean over some places of a row (Tang et al. 2019)."""
    return mean([(student[place] - teacher[place]) ** 2 for place in places])


def test_squared_differences_of_logits(generator: torch.Generator) -> None:
    logits, teacher = 3 * torch.randn(2, ROWS, CLASSES, generator=generator)
    several, expected = 3 * torch.randn(2, ROWS, LENGTH, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    tags = torch.randint(CLASSES, (ROWS, LENGTH), generator=generator)
    tags[torch.rand(ROWS, LENGTH, generator=generator) < 0.4] = NO_TAG
    tags[0, 0] = 1
    objective, every = TaskObjective(soft_loss="mse"), list(range(CLASSES))

    def rows(student: Tensor) -> Tensor:
        return mean([naive_squares(student[n], teacher[n].double(), every) for n in range(ROWS)])

    def tagged(student: Tensor) -> Tensor:
        places = (tags != NO_TAG).nonzero().tolist()
        return mean([naive_squares(student[n, at], expected[n, at].double(), every) for n, at in places])

    compare([logits], lambda student: objective.sentence(student, labels, teacher)["ce"], rows)
    compare([logits], lambda student: objective.labels(student, torch.zeros_like(student), teacher)["ce"], rows)
    compare([several], lambda student: objective.tags(student, tags, expected)["ce"], tagged)


def test_squared_differences_of_spans(generator: torch.Generator) -> None:
    start, end, teacher_start, teacher_end = 3 * torch.randn(4, ROWS, LENGTH, generator=generator)
    inside = torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (ROWS, 1), generator=generator)
    answerable = inside & (torch.rand(ROWS, LENGTH, generator=generator) < 0.6)
    answerable[:, 0] = True
    zeros = torch.zeros(ROWS, dtype=torch.int64)

    def naive(*student: Tensor) -> Tensor:
        pairs = list(zip(student, (teacher_start, teacher_end), strict=True))
        places = [answerable[n].nonzero()[:, 0].tolist() for n in range(ROWS)]
        return mean(
            [naive_squares(mine[n], other[n].double(), places[n]) for mine, other in pairs for n in range(ROWS)]
        )

    compare(
        [start, end],
        lambda *student: TaskObjective(soft_loss="mse").span(
            student, (zeros, zeros), inside, answerable, (teacher_start, teacher_end)
        )["ce"],
        naive,
    )
