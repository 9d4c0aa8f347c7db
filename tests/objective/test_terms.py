"""Each term against a naive float64 version written here with loops, value and gradient, on fresh random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from potstill.errors import PotstillError
from potstill.objective import AttentionRelations, Batch, Encoded, HiddenCosine, HiddenMSE, Term
from potstill.student import AttentionInputs, VocabularyHead

BLOCKS, LENGTH, TEACHER, STUDENT = 2, 5, 12, 8  # the last two are widths
HEAD = VocabularyHead(lambda hidden: hidden, torch.zeros(1), None)  # read by none of these terms
PLACES = [("cpu", torch.float64), ("cpu", torch.bfloat16)]
PLACES += [pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in (torch.float32, torch.bfloat16)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}

Leaves = dict[str, Tensor]


def config(width: int, layers: int = 4, heads: int = 2) -> BertConfig:
    return BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads)


def compare(
    term: Term,
    leaves: Leaves,
    batch_of: Callable[[Leaves], Batch],
    naive: Callable[[Leaves], Tensor],
    device: str,
    dtype: torch.dtype,
) -> None:
    """Compare value and gradients of a term with those of a function of the same leaves in float64.

    The leaves are rounded to the type first, so that both start from the same numbers.
    """
    rounded = {name: leaf.to(dtype).double() for name, leaf in leaves.items()}
    exact = {name: leaf.clone().requires_grad_() for name, leaf in rounded.items()}
    expected = naive(exact)
    expected.backward()
    found = {name: leaf.to(device, dtype).requires_grad_() for name, leaf in rounded.items()}
    value = term.value(batch_of(found))
    value.backward()
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(expected.item(), rel=TOLERANCES[dtype])
    for name in leaves:
        if not name.startswith("teacher"):
            gradient, other = found[name].grad.double().cpu(), exact[name].grad
            assert ((gradient - other).norm() / other.norm()).item() < TOLERANCES[dtype], name


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_hidden_cosine(device: str, dtype: torch.dtype) -> None:
    def naive(leaves: Leaves) -> Tensor:
        values = []
        for b in range(BLOCKS):
            for i in range(LENGTH):
                s, t = leaves["student"][b, i], leaves["teacher"][b, i]
                values.append(1 - (s @ t) / ((s @ s) * (t @ t)).sqrt())
        return torch.stack(values).mean()

    def batch_of(leaves: Leaves) -> Batch:
        student, teacher = (Encoded({-1: leaves[role]}, {}, HEAD) for role in ("student", "teacher"))
        return Batch(student, teacher, torch.empty(0), torch.empty(0))

    leaves = {"student": normal(BLOCKS, LENGTH, TEACHER), "teacher": normal(BLOCKS, LENGTH, TEACHER)}
    compare(HiddenCosine(), leaves, batch_of, naive, device, dtype)


def test_states_of_few_tokens_are_not_taken_for_those_of_all() -> None:
    few = Encoded({-1: normal(BLOCKS, 2, TEACHER)}, {}, HEAD, at=torch.tensor([[0, 3], [4, 1]]), block_size=LENGTH)
    with pytest.raises(PotstillError, match="read them with last_at"):
        few.last  # noqa: B018 - raises
    assert few.length == LENGTH
    torch.testing.assert_close(few.last_at(few.at), few.hidden[-1])


@pytest.mark.parametrize("few", ["none", "student", "both"])
@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_hidden_cosine_at_masked_tokens(device: str, dtype: torch.dtype, few: str) -> None:
    """The states may be those of all tokens, or of the masked tokens with others after them."""
    places = [[4, 0, 2], [1, 3, 0]]
    labels = [[7, -100, 3], [2, 9, 1]]  # nothing is predicted at one of them

    def naive(leaves: Leaves) -> Tensor:
        values = []
        for b in range(BLOCKS):
            for k, i in enumerate(places[b]):
                s, t = leaves["student"][b, i], leaves["teacher"][b, i]
                values.append(1 - (s @ t) / ((s @ s) * (t @ t)).sqrt() if labels[b][k] != -100 else s.sum() * 0)
        return torch.stack(values).mean()

    def batch_of(leaves: Leaves) -> Batch:
        positions = torch.tensor(places, device=device)
        at = torch.cat([positions, positions[:, :1]], 1)

        def encoded(role: str, cut: bool) -> Encoded:
            last = torch.stack([states[rows] for states, rows in zip(leaves[role], at, strict=True)])
            if cut:
                return Encoded({-1: last}, {}, HEAD, at=at, block_size=LENGTH)
            return Encoded({-1: leaves[role]}, {}, HEAD)

        student, teacher = encoded("student", few != "none"), encoded("teacher", few == "both")
        return Batch(student, teacher, positions, torch.tensor(labels, device=device))

    leaves = {"student": normal(BLOCKS, LENGTH, TEACHER), "teacher": normal(BLOCKS, LENGTH, TEACHER)}
    compare(HiddenCosine(tokens="masked"), leaves, batch_of, naive, device, dtype)


@pytest.mark.parametrize("width", [TEACHER, STUDENT], ids=["equal widths", "projected"])
@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_hidden_mse(device: str, dtype: torch.dtype, width: int) -> None:
    term = HiddenMSE(layers={0: 1, 2: 3, -1: -1})
    pairs = list(term.layers.items())
    leaves: Leaves = {}
    for ours, theirs in pairs:
        leaves[f"student {ours}"] = normal(BLOCKS, LENGTH, width)
        leaves[f"teacher {theirs}"] = normal(BLOCKS, LENGTH, TEACHER)
        if width != TEACHER:
            leaves[f"weight {ours}"] = normal(TEACHER, width)
            leaves[f"bias {ours}"] = normal(TEACHER)

    def naive(leaves: Leaves) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for ours, theirs in pairs:
            for b in range(BLOCKS):
                for i in range(LENGTH):
                    state = leaves[f"student {ours}"][b, i]
                    if width != TEACHER:
                        state = leaves[f"weight {ours}"] @ state + leaves[f"bias {ours}"]
                    total = total + ((state - leaves[f"teacher {theirs}"][b, i]) ** 2).sum()
        return total / (len(pairs) * BLOCKS * LENGTH * TEACHER)

    def batch_of(leaves: Leaves) -> Batch:
        student = Encoded({ours: leaves[f"student {ours}"] for ours, _ in pairs}, {}, HEAD)
        teacher = Encoded({theirs: leaves[f"teacher {theirs}"] for _, theirs in pairs}, {}, HEAD)
        trained = term.module(config(TEACHER), config(width))
        assert (trained is None) == (width == TEACHER)
        if trained is not None:
            for (ours, _), projection in zip(pairs, trained, strict=True):
                del projection.weight, projection.bias
                projection.weight, projection.bias = leaves[f"weight {ours}"], leaves[f"bias {ours}"]
        return Batch(student, teacher, torch.empty(0), torch.empty(0), trained)

    compare(term, leaves, batch_of, naive, device, dtype)


def relations(values: Tensor, heads: int) -> Tensor:
    """Attention relations by loops: (B, heads, L, L)."""
    size = values.shape[-1] // heads
    found = values.new_empty(len(values), heads, LENGTH, LENGTH)
    for b in range(len(values)):
        for head in range(heads):
            for i in range(LENGTH):
                part = values[b, :, head * size : (head + 1) * size]
                scores = torch.stack([part[i] @ part[j] / math.sqrt(size) for j in range(LENGTH)])
                found[b, head, i] = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
    return found


@pytest.mark.parametrize("kinds", [("query", "key", "value"), ("value",)], ids=str)
@pytest.mark.parametrize("heads", [1, 4, None])
@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_attention_relations(device: str, dtype: torch.dtype, heads: int | None, kinds: tuple[str, ...]) -> None:
    term = AttentionRelations(teacher_layer=2, student_layer=1, relation_heads=heads, relations=kinds)
    number = heads or 2  # the teacher's attention heads
    leaves = {f"student {kind}": normal(BLOCKS, LENGTH, STUDENT) for kind in kinds}
    leaves |= {f"teacher {kind}": normal(BLOCKS, LENGTH, TEACHER) for kind in kinds}

    def naive(leaves: Leaves) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for kind in kinds:
            p, q = (relations(leaves[f"{role} {kind}"], number) for role in ("teacher", "student"))
            for b in range(BLOCKS):
                for head in range(number):
                    for i in range(LENGTH):
                        total = total + (p[b, head, i] * (p[b, head, i].log() - q[b, head, i].log())).sum()
        return total / (BLOCKS * number * LENGTH)

    def batch_of(leaves: Leaves) -> Batch:
        def encoded(role: str, layer: int, attention_heads: int) -> Encoded:
            unread = torch.full((1,), float("nan"))
            parts = [leaves.get(f"{role} {kind}", unread) for kind in ("query", "key", "value")]
            return Encoded({}, {layer: AttentionInputs(*parts, heads=attention_heads)}, HEAD)

        return Batch(encoded("student", 1, 4), encoded("teacher", 2, 2), torch.empty(0), torch.empty(0))

    compare(term, leaves, batch_of, naive, device, dtype)


def test_relations_of_equal_models_are_at_no_distance() -> None:
    states = Encoded({}, {-1: AttentionInputs(*normal(3, BLOCKS, LENGTH, TEACHER), heads=2)}, HEAD)
    value = AttentionRelations(relation_heads=6).value(Batch(states, states, torch.empty(0), torch.empty(0)))
    assert value.item() == pytest.approx(0, abs=1e-15)


def test_flops_by_hand() -> None:
    teacher, student = config(TEACHER), config(STUDENT)
    # A Aᵀ: each of L tokens with each, for each of D columns a multiplication and an addition, for two kinds.
    relations = AttentionRelations(relations=["query", "value"]).flops(teacher, student, LENGTH)
    assert relations == (2 * 2 * LENGTH * TEACHER, 2 * 2 * LENGTH * STUDENT)
    projected = HiddenMSE(layers={0: 0, 1: 3, 2: 2}).flops(teacher, student, LENGTH)
    assert projected == (0, 3 * 2 * STUDENT * TEACHER)
    assert HiddenMSE().flops(teacher, teacher, LENGTH) == HiddenCosine().flops(teacher, teacher, LENGTH) == (0, 0)


@pytest.mark.parametrize(
    ("term", "teacher", "student", "told"),
    [
        (
            HiddenCosine(),
            config(12),
            config(8),
            r"teacher's are 12 wide and the student's 8: give --alpha_cos 0, or leave",
        ),
        (
            HiddenMSE(layers={4: 0}),
            config(12),
            config(12),
            "layers of hidden_mse names layer 4 of the student, which has 4",
        ),
        (
            HiddenMSE(layers={0: 9}),
            config(12),
            config(12),
            "layers of hidden_mse names layer 9 of the teacher, which has 4",
        ),
        (HiddenMSE(layers={-5: 0}), config(12), config(12), "names layer -5 of the student"),
        (
            AttentionRelations(teacher_layer=4),
            config(12),
            config(8),
            "teacher_layer of attention_relations names layer 4",
        ),
        (
            AttentionRelations(student_layer=7),
            config(12),
            config(8),
            "student_layer of attention_relations names layer 7",
        ),
        (
            AttentionRelations(relation_heads=6),
            config(12),
            config(8),
            "the 6 relation heads of attention_relations do not divide the student's width of 8: set relation_heads to "
            "a number that divides 12 and 8",
        ),
        (
            AttentionRelations(),
            config(12, heads=3),
            config(8),
            "the 3 relation heads .* do not divide the student's width",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_models_that_do_not_fit_a_term(term: Term, teacher: BertConfig, student: BertConfig, told: str) -> None:
    with pytest.raises(PotstillError, match=told):
        term.check(teacher, student)


def test_models_of_other_widths_and_heads_fit_the_terms_that_bridge_them() -> None:
    for term in (HiddenMSE(layers={0: 0, 3: -1}), AttentionRelations(relation_heads=4), AttentionRelations()):
        term.check(config(12), config(8, heads=4))
    assert isinstance(HiddenMSE().module(config(12), config(8)), nn.ModuleList)
