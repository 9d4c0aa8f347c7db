"""The importance of heads and neurons, against the gradients of the matrices that read them, row by row in float64."""

import copy
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from families_samples import CONFIGS, LENGTH, SAMPLES, random_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from potstill.compress.cut import cut, locate_removable
from potstill.compress.importance import importance
from potstill.compress.kept import Kept, kept_of
from potstill.errors import PotstillError
from potstill.student import build_student, family_of, grow, narrow
from potstill.student.pruned import is_pruned

HEADS, NEURONS, DEPTH, WIDTH = 3, 40, 4, 8

READ_HEADS = r"\d\.(attention\.(output\.dense|out_lin)|attn\.c_proj|attn\.Wo|self_attn\.o_proj)\.weight$"
READ_NEURONS = r"\d\.(output\.dense|ffn\.lin2|mlp\.c_proj|mlp\.Wo|mlp\.down_proj)\.weight$"
"""Names of the matrices that read heads and neurons, in the order of the layers."""


def eurobert(**options: object) -> PreTrainedConfig:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "EuroBertConfig"):
        pytest.skip("this version of transformers has no EuroBERT")
    sizes: dict[str, object] = {
        "vocab_size": 101,
        "hidden_size": 24,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    sizes |= {"intermediate_size": NEURONS, "max_position_embeddings": LENGTH}
    return transformers.EuroBertConfig(**(sizes | special | options))


FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    **CONFIGS,
    "deberta-v2, own projections": lambda **options: CONFIGS["deberta-v2"](share_att_key=False, **options),
    "eurobert": eurobert,
}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def random_classifier(name: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(FAMILIES[name](pad_token_id=1, num_labels=3)).double()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def matrices(model: PreTrainedModel, pattern: str) -> list[tuple[Tensor, int]]:
    """The matrices of the layers that read heads or neurons, each with the axis that goes over what it reads."""
    found = [(name, tensor) for name, tensor in model.named_parameters() if re.search(pattern, name)]
    assert len(found) == DEPTH
    return [(tensor, 0 if ".c_proj" in name else 1) for name, tensor in found]


@torch.no_grad()
def with_masks(model: PreTrainedModel, pattern: str, masks: list[Tensor], width: int) -> None:
    """Multiply what a matrix reads of each head or neuron, which is the same as a factor of its output."""
    for (tensor, axis), mask in zip(matrices(model, pattern), masks, strict=True):
        factors = mask.double().repeat_interleave(width)
        tensor.mul_(factors[:, None] if axis == 0 else factors)


def rows_of(seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 101, (count, LENGTH - 4), generator=generator)
    return ids, torch.randint(0, 3, (count,), generator=generator)


def some_kept(total: int, left: int, seed: int) -> Kept:
    generator = torch.Generator().manual_seed(seed)
    kept = [sorted(torch.randperm(total, generator=generator)[: left + n % 2].tolist()) for n in range(DEPTH)]
    return Kept.from_numbers(kept, [total] * DEPTH)


def row_losses(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, labels, reduction="none")


def by_weights(model: PreTrainedModel, pattern: str, width: int, seed: int) -> list[Tensor]:
    """The mean over rows of |dL/dm| of each part. A factor m of a part scales what W reads of it: dL/dm = W · dL/dW."""
    found = [torch.zeros(1)] * DEPTH
    read = matrices(model, pattern)
    for row in range(3):
        loss = row_losses(model, *(tensor[row : row + 1] for tensor in rows_of(seed)))
        gradients = torch.autograd.grad(loss.squeeze(), [tensor for tensor, _ in read])
        for layer, ((tensor, axis), gradient) in enumerate(zip(read, gradients, strict=True)):
            products = (tensor * gradient).sum(1 - axis).unflatten(0, (-1, width)).sum(1)
            found[layer] = found[layer] + products.abs() / 3
    return found


def test_importance_is_the_mean_absolute_derivative_of_a_rows_loss(name: str) -> None:
    seed = torch.seed() % 2**31
    model = random_classifier(name, seed)
    has_heads = name != "mpnet"
    located = locate_removable(model, has_heads, True)
    heads, neurons = some_kept(HEADS, 2, seed), some_kept(NEURONS, 30, seed)
    ids, labels = rows_of(seed)

    def batches() -> Iterator[tuple[int, slice]]:
        yield 2, slice(0, 2)
        yield 1, slice(2, 3)

    found = importance(
        located,
        heads if has_heads else None,
        neurons,
        batches(),
        lambda rows: row_losses(model, ids[rows], labels[rows]).sum(),
    )
    if has_heads:
        with_masks(model, READ_HEADS, list(heads.of_layers), WIDTH)
    with_masks(model, READ_NEURONS, list(neurons.of_layers), 1)
    assert (found.heads is not None) == has_heads
    for pattern, scores, width in ((READ_HEADS, found.heads, WIDTH), (READ_NEURONS, found.neurons, 1)):
        if scores is not None:
            for of_layer, expected in zip(scores, by_weights(model, pattern, width, seed), strict=True):
                # Rotary positions are computed in float32, whatever the model's precision is.
                assert torch.allclose(of_layer, expected, rtol=1e-5, atol=1e-7)
    for scores, kept in ((found.heads, heads), (found.neurons, neurons)):
        for of_layer, mask in zip(scores or (), kept.of_layers, strict=False):
            assert (of_layer[~mask] == 0).all()
            assert (of_layer[mask] > 0).any()


@pytest.mark.parametrize("uniform", [False, True], ids=["any numbers", "equal numbers"])
def test_the_cut_model_computes_what_the_masked_model_computes(name: str, uniform: bool) -> None:
    if name == "eurobert" and not uniform:
        pytest.skip("there is no class for it")
    seed = torch.seed() % 2**31
    model = random_classifier(name, seed)
    before = copy.deepcopy(model.state_dict())
    located = locate_removable(model, name != "mpnet", True)
    heads, neurons = kept_of(located)
    generator = torch.Generator().manual_seed(seed)
    scores = [[torch.rand(size, generator=generator) for _ in range(DEPTH)] for size in (HEADS, NEURONS)]
    if name != "mpnet":
        heads = heads.without(scores[0], 8 if uniform else 5, uniform, normalise=True)
    neurons = neurons.without(scores[1], 60, uniform, normalise=True)
    small = cut(located, heads, neurons)
    ids, labels = rows_of(seed)
    whole = row_losses(model, ids, labels)
    found = row_losses(small, ids, labels)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    if name != "mpnet":
        with_masks(model, READ_HEADS, list(heads.of_layers), WIDTH)
    with_masks(model, READ_NEURONS, list(neurons.of_layers), 1)
    assert torch.allclose(found, row_losses(model, ids, labels), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(found, whole, atol=1e-3)
    again = locate_removable(small, False, False)
    assert again.neurons == [len(numbers) for numbers in neurons.numbers]
    assert again.heads == [len(numbers) for numbers in heads.numbers]
    equal = all(len({len(numbers) for numbers in kept.numbers}) == 1 for kept in (heads, neurons))  # at times by chance
    assert equal or not uniform
    plain = equal and name in ("mpnet", "eurobert")  # whose config says these numbers
    assert is_pruned(small.config) != plain
    assert plain == (type(small) is type(model))


def test_a_pruned_model_can_be_pruned_again() -> None:
    model = random_classifier("bert", 3)
    located = locate_removable(model, True, True)
    heads, neurons = some_kept(HEADS, 2, 5), some_kept(NEURONS, 30, 5)
    once = cut(located, heads, neurons)
    inside = locate_removable(once, True, True)
    fewer, left = kept_of(inside)
    fewer = fewer.without([torch.arange(len(mask)) for mask in fewer.of_layers], 2, False, False)
    left = left.without([torch.arange(len(mask)) for mask in left.of_layers], 7, False, False)
    twice = cut(inside, fewer, left)
    assert type(twice) is type(once)
    kept = [numbers[chosen].tolist() for numbers, chosen in zip(heads.numbers, fewer.numbers, strict=True)]
    kept_neurons = [numbers[chosen].tolist() for numbers, chosen in zip(neurons.numbers, left.numbers, strict=True)]
    at_once = cut(located, Kept.from_numbers(kept, [3] * 4), Kept.from_numbers(kept_neurons, [40] * 4))
    assert all(torch.equal(tensor, at_once.state_dict()[key]) for key, tensor in twice.state_dict().items())
    assert twice.config.to_dict() == at_once.config.to_dict()


def test_what_needs_layers_that_are_alike_refuses_a_pruned_model() -> None:
    model = random_model(CONFIGS["bert"]())
    located = locate_removable(model, True, True)
    small = cut(located, some_kept(HEADS, 2, 5), kept_of(located)[1])
    ids, _ = rows_of(1)
    assert torch.allclose(family_of(small).encode(small, ids).last, small.base_model(ids).last_hidden_state, atol=1e-5)
    for refusing in (lambda: build_student(small, 2), lambda: narrow(small, 16), lambda: grow(small, 8)):
        with pytest.raises(PotstillError, match="is pruned, and its layers differ in heads or neurons"):
            refusing()


@pytest.mark.parametrize(
    ("name", "heads", "message"),
    [
        ("mpnet", True, "'mpnet' cannot be removed, because all its layers share"),
        ("roformer", False, "'roformer' cannot be pruned, because potstill does not know"),
    ],
)
def test_architectures_that_cannot_be_pruned_are_refused(name: str, heads: bool, message: str) -> None:
    model = random_model(SAMPLES[name]())
    with pytest.raises(PotstillError, match=message):
        locate_removable(model, heads, True)


def test_a_config_that_cannot_say_the_heads_is_refused() -> None:
    model = random_classifier("eurobert", 1)
    located = locate_removable(model, True, False)
    heads, neurons = kept_of(located)
    fewer = heads.without([torch.arange(HEADS) for _ in range(DEPTH)], 1, uniform=False, normalise=False)
    with pytest.raises(PotstillError, match="'eurobert' can only lose the same number of heads"):
        cut(located, fewer, neurons)
