"""A budget is read, the largest student that keeps to it is chosen, and its files are as large as was estimated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families_samples import CONFIGS, random_model
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill.bench.flops import forward_flops
from potstill.errors import PotstillError
from potstill.student import build_student, family_of
from potstill.student.sizes import Sizes
from potstill.student.sizing import Budget, Estimate, estimate, largest_student

BLOCK = 16


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("50MB", 50e6, "bytes"),
        ("50 MiB", 50 * 2**20, "bytes"),
        ("1.5gb", 1.5e9, "bytes"),
        ("300kB", 300e3, "bytes"),
        ("20M", 20e6, "parameters"),
        ("500k", 500e3, "parameters"),
        ("2.5x", 2.5, "times faster"),
        ("3×", 3, "times faster"),
    ],
)
def test_budgets(text: str, number: float, unit: str) -> None:
    budget = Budget.parse(text)
    assert (budget.number, budget.unit, budget.text) == (number, unit, text)


@pytest.mark.parametrize("text", ["50", "MB", "-3MB", "0MB", "50 apples", "1e3MB", "fast", "", "50MB,20M", "50M B"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(PotstillError, match=r"--max_size is .* give a size on disk such as 50MB"):
        Budget.parse(text)
    with pytest.raises(PotstillError, match="needs more than 1x"):
        Budget.parse("1x")


def build(teacher: PreTrainedModel, found: Estimate, **options: Any) -> PreTrainedModel:
    sizes = found.as_record()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return build_student(teacher, **{name: sizes[name] for name in names}, **options)


@pytest.mark.parametrize("budget", ["60kB", "11K", "1.7x"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_estimate_is_what_the_files_hold(model_type: str, budget: str, tmp_path: Path) -> None:
    teacher = random_model(CONFIGS[model_type]())
    wanted = Budget.parse(budget)
    found = largest_student(teacher, wanted, BLOCK)
    assert found.fits(wanted)
    student = build(teacher, found)
    student.save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert written == pytest.approx(found.file_bytes, rel=0.01)
    assert found.parameters == sum(parameter.numel() for parameter in student.parameters())
    assert found.embedding_bytes == 4 * student.get_input_embeddings().weight.numel()
    share = 1.0 if family_of(teacher).causal else 0.0
    ratio = forward_flops(teacher, BLOCK, share) / forward_flops(student, BLOCK, share)
    assert found.speed_up == pytest.approx(ratio)
    if wanted.unit == "bytes":
        assert written <= 60_000
    elif wanted.unit == "parameters":
        assert found.parameters <= 11_000
    else:
        assert ratio >= 1.7 * (1 - 1e-6)


def brute_force(teacher: PreTrainedModel, budget: Budget) -> tuple[int, int]:
    """Depth and width by the rule of the documentation, from all shapes there are."""
    fitting = []
    for depth in range(1, 5):
        for heads in range(1, 4):
            sizes = Sizes(8 * heads, heads, max(1, round(40 * 8 * heads / 24)))
            if estimate(teacher, depth, sizes, BLOCK).fits(budget):
                wide, neurons = sizes.hidden_size, sizes.intermediate_size
                layer = 4 * wide * wide + 2 * wide * neurons + 9 * wide + neurons  # two LayerNorms and the biases
                fitting.append((depth, wide, depth * layer))
    whole = [shape for shape in fitting if shape[0] >= 2 and shape[1] == 24]
    return max(whole)[:2] if whole else max(fitting, key=lambda shape: (shape[2], shape[1]))[:2]


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("budget", ["500kB", "70kB", "50kB", "33kB", "20kB", "10kB", "12K", "1.2x", "3x", "10x"])
def test_the_choice_is_the_one_of_the_rule(model_type: str, budget: str) -> None:
    teacher, wanted = random_model(CONFIGS[model_type]()), Budget.parse(budget)
    found = largest_student(teacher, wanted, BLOCK)
    assert (found.num_hidden_layers, found.sizes.hidden_size) == brute_force(teacher, wanted)


def test_sizes_that_are_given_stay(make_bert: Callable[..., BertForMaskedLM]) -> None:
    teacher, budget = make_bert(), Budget.parse("30kB")

    def shape(**given: int) -> tuple[int, Sizes]:
        found = largest_student(teacher, budget, BLOCK, **given)
        assert found.fits(budget)
        return found.num_hidden_layers, found.sizes

    depth, sizes = shape(num_hidden_layers=1)
    assert (depth, sizes.hidden_size) == (1, 16)
    assert shape(hidden_size=8) == (4, Sizes(8, 1, 13))
    assert shape(num_attention_heads=1) == (4, Sizes(8, 1, 13))
    assert shape(hidden_size=8, intermediate_size=40)[1] == Sizes(8, 1, 40)
    with pytest.raises(PotstillError, match="with the sizes that are given has 4 layers, 16 wide"):
        shape(num_hidden_layers=4, hidden_size=16)


def test_a_family_that_cannot_be_narrowed_gets_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = random_model(CONFIGS["roberta"]())
    monkeypatch.setattr(type(family_of(teacher)), "widths", None)
    found = largest_student(teacher, Budget.parse("40kB"), BLOCK)
    assert (found.num_hidden_layers, found.sizes.hidden_size) == (1, 24)
    with pytest.raises(PotstillError, match="smallest one of this teacher has 1 layer, 24 wide"):
        largest_student(teacher, Budget.parse("30kB"), BLOCK)
    assert largest_student(teacher, Budget.parse("30kB"), BLOCK, copied=False).sizes.hidden_size < 24


def test_a_budget_that_nothing_keeps_to(make_bert: Callable[..., BertForMaskedLM]) -> None:
    message = "No student keeps to --max_size 2kB: the smallest one of this teacher has 1 layer, 8 wide.*prune_vocab"
    with pytest.raises(PotstillError, match=message):
        largest_student(make_bert(), Budget.parse("2kB"), BLOCK)
    with pytest.raises(PotstillError, match=r"times faster than the teacher by FLOPs; ask for less speed\.$"):
        largest_student(make_bert(), Budget.parse("1000x"), BLOCK)


def test_berts_own_size() -> None:
    with torch.device("meta"):
        teacher = BertForMaskedLM(BertConfig())
    found = largest_student(teacher, Budget.parse("67M"), 512)
    assert (found.num_hidden_layers, found.sizes, found.parameters) == (6, Sizes(768, 12, 3072), 66_985_530)
    assert str(found).startswith("6 layers, 768 wide, 12 heads, feed-forward layers of 3,072: 66,985,530 parameters")
    assert found.speed_up == pytest.approx(2)
