"""A narrower model says what the wide one says, as far as what is left out says nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families_samples import CONFIGS, LENGTH, random_model
from torch import Tensor, nn
from transformers import AutoModel, BertForMaskedLM, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student import build_student, family_of, narrow
from potstill.student.family import family_of_type
from potstill.student.importance import by_activations, by_weights
from potstill.student.parts import locate
from potstill.student.sizes import Sizes, sizes_of

HIDDEN, HEADS, NEURONS, DEPTH = 24, 3, 40, 4
HEAD = HIDDEN // HEADS
NARROW = {"hidden_size": 16, "intermediate_size": 23}

AXES = {
    r"(self\.(query|key|value)(_proj)?|c_attn|Wqkv)\.weight": ("heads", "hidden"),
    r"(self\.(query|key|value)(_proj)?|c_attn)\.bias": ("heads",),
    r"(attention\.output\.dense|attn\.c_proj|attn\.Wo)\.weight": ("hidden", "heads"),
    r"(intermediate\.dense|c_fc|Wi)\.weight": ("neurons", "hidden"),
    r"(intermediate\.dense|c_fc)\.bias": ("neurons",),
    r"(\d\.output\.dense|mlp\.c_proj|mlp\.Wo)\.weight": ("hidden", "neurons"),
}
"""Names of tensors → what their axes go over, as (out, in). All other axes of 24 entries go over the dimensions."""


@pytest.fixture(params=[name for name in CONFIGS if family_of_type(name).widths is not None], scope="module")
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


def ids(rows: int = 5, seed: int = 3) -> Tensor:
    return torch.randint(5, 101, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(ids()).logits


@pytest.mark.parametrize("narrow_by", ["importance", "random"])
@pytest.mark.parametrize("headless", [False, True])
def test_narrowing_by_nothing_is_the_identity(model_type: str, narrow_by: Any, headless: bool) -> None:
    model = random_model(CONFIGS[model_type]())
    model = model.base_model if headless else model
    same = narrow(model, HIDDEN, HEADS, NEURONS, narrow_by)
    assert type(same) is type(model)
    assert sizes_of(same.config) == sizes_of(model.config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name
        assert same.state_dict()[name].data_ptr() != tensor.data_ptr()
    assert torch.equal(same(ids())[0], model(ids())[0])


class NormOfKept(nn.Module):
    """A LayerNorm whose mean and variance are those of some dimensions; the others are 0."""

    def __init__(self, norm: nn.LayerNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = (None if part is None else part[self.kept] for part in (self.norm.weight, self.norm.bias))
        found = torch.zeros_like(hidden)
        found[..., self.kept] = F.layer_norm(hidden[..., self.kept], (len(self.kept),), weight, bias, self.norm.eps)
        return found


def some(number: int, of: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(of, generator=generator)[:number].sort().values


@torch.no_grad()
def with_unused_parts(model: PreTrainedModel, sizes: Sizes, seed: int) -> Tensor:
    """Set all weights of random dimensions, heads and neurons to 0; return the dimensions that are left."""
    generator = torch.Generator().manual_seed(seed)
    kept = some(sizes.hidden_size, HIDDEN, generator)
    dimensions = torch.zeros(HIDDEN, dtype=torch.float64).index_fill(0, kept, 1)
    layers = []
    for _ in range(DEPTH):
        heads = torch.zeros(HEADS, dtype=torch.float64)
        heads[some(sizes.num_attention_heads, HEADS, generator)] = 1
        neurons = torch.zeros(NEURONS, dtype=torch.float64)
        neurons[some(sizes.intermediate_size, NEURONS, generator)] = 1
        layers.append({"hidden": dimensions, "heads": heads.repeat_interleave(HEAD), "neurons": neurons})
    for name, tensor in model.named_parameters():
        axes = next((axes for pattern, axes in AXES.items() if re.search(rf"\.{pattern}$", name)), None)
        if axes is None:
            axes = tuple("hidden" if size == HIDDEN else None for size in tensor.shape)
        elif re.search(r"\.c_\w+\.weight$", name):  # GPT-2's matrices are (in, out)
            axes = axes[::-1]
        layer = re.search(r"\.(\d)\.", name)
        for axis, role in enumerate(axes):
            if role is not None:
                mask = layers[int(layer[1]) if layer else 0][role]
                mask = mask.repeat(tensor.shape[axis] // len(mask))  # queries, keys and values may be fused
                tensor.mul_(mask.reshape([-1 if other == axis else 1 for other in range(tensor.dim())]))
    return kept


@pytest.mark.parametrize("measured", [False, True], ids=["by weights", "by activations"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "modernbert", "electra", "deberta-v2"])
def test_parts_that_do_nothing_can_be_left_out(model_type: str, tied: bool, measured: bool) -> None:
    seed = torch.seed() % 2**31
    teacher = random_model(CONFIGS[model_type](tie_word_embeddings=tied, hidden_act="gelu"), torch.float64, seed)
    kept = with_unused_parts(teacher, Sizes(16, 2, 23), seed)
    student = build_student(teacher, layers=range(DEPTH), **NARROW, blocks=ids(8, seed) if measured else None)
    assert sizes_of(student.config) == Sizes(16, 2, 23)
    wide = logits(teacher)
    for name, module in list(teacher.named_modules()):
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == (HIDDEN,):
            teacher.set_submodule(name, NormOfKept(module, kept))
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-10, msg=f"seed {seed}")
    assert not torch.allclose(wide, logits(teacher), atol=1e-3)  # LayerNorm over fewer dimensions is another one
    words = teacher.get_input_embeddings().weight
    expected = words[:, kept] if words.shape[1] == HIDDEN else words  # embeddings may have a width of their own
    assert torch.equal(student.get_input_embeddings().weight, expected)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "modernbert", "electra", "deberta-v2"])
def test_neurons_alone(model_type: str) -> None:
    teacher = random_model(CONFIGS[model_type](), torch.float64)
    with_unused_parts(teacher, Sizes(HIDDEN, HEADS, 23), 0)
    student = build_student(teacher, layers=range(DEPTH), intermediate_size=23)
    assert sizes_of(student.config) == Sizes(HIDDEN, HEADS, 23)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-10)


@pytest.mark.parametrize("model_type", ["distilbert", "roberta", "gpt2"])
def test_importance_of_activations_is_what_it_says(model_type: str) -> None:
    seed = torch.seed() % 2**31
    model = random_model(CONFIGS[model_type](), torch.float64, seed).train()
    blocks, located = ids(6, seed), locate(model)
    seen: dict[str, list[Tensor]] = {}

    def saw(key: str, value: Tensor) -> None:
        seen.setdefault(key, []).append(value.detach().flatten(0, -2))

    handles = []
    for number, layer in enumerate(located.layers):
        for kind, (name,) in {"head": located.widths.heads_in, "neuron": located.widths.neurons_in}.items():
            key = f"{kind} {number}"
            module = layer.get_submodule(name)
            handles.append(module.register_forward_hook(lambda _, inputs, __, key=key: saw(key, inputs[0])))
    norms = [module for module in model.base_model.modules() if isinstance(module, nn.LayerNorm)]
    handles += [norm.register_forward_hook(lambda _, __, output: saw("norm", output)) for norm in norms]
    model.eval()(blocks)
    model.train()
    for handle in handles:
        handle.remove()
    found = by_activations(located, blocks)
    assert model.training
    transposed = model_type != "gpt2"
    expected = torch.stack(seen["norm"][: len(norms)]).abs().mean((0, 1))
    torch.testing.assert_close(found.dimensions, expected)
    for number, layer in enumerate(located.layers):
        weight = layer.get_submodule(located.widths.heads_in[0]).weight
        weight = weight.T if transposed else weight
        mixed = seen[f"head {number}"][0]
        for head in range(HEADS):
            part = slice(head * HEAD, (head + 1) * HEAD)
            adds = [(token[part] @ weight[part]).norm() for token in mixed]
            torch.testing.assert_close(found.heads[number][head], torch.stack(adds).mean())
        weight = layer.get_submodule(located.widths.neurons_in[0]).weight
        weight = weight.T if transposed else weight
        active = seen[f"neuron {number}"][0]
        expected = torch.stack([active[:, i].abs().mean() * weight[i].norm() for i in range(NEURONS)])
        torch.testing.assert_close(found.neurons[number], expected)


def test_importance_of_weights_is_what_it_says() -> None:
    model = random_model(CONFIGS["distilbert"](), torch.float64, torch.seed() % 2**31)
    found = by_weights(locate(model))
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * DEPTH + 2  # those of the embeddings and of the head too
    squares = torch.stack([norm.weight**2 + norm.bias**2 for norm in norms])
    torch.testing.assert_close(found.dimensions, squares.sqrt().mean(0))
    for number, layer in enumerate(model.distilbert.transformer.layer):
        value, output = layer.attention.v_lin, layer.attention.out_lin
        with_bias = torch.cat([value.weight, value.bias[:, None]], 1)
        for head in range(HEADS):
            part = slice(head * HEAD, (head + 1) * HEAD)
            product = output.weight[:, part] @ with_bias[part]
            torch.testing.assert_close(found.heads[number][head], product.norm())
        first, second = layer.ffn.lin1, layer.ffn.lin2
        norm = (first.weight.square().sum(1) + first.bias.square()).sqrt()
        torch.testing.assert_close(found.neurons[number], norm * second.weight.square().sum(0).sqrt())


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "gpt2"])
def test_a_random_choice_depends_on_the_seed_alone(model_type: str) -> None:
    model = random_model(CONFIGS[model_type]())
    words = model.get_input_embeddings().weight
    chosen = []
    for seed in (1, 1, 2):
        state = torch.get_rng_state()
        narrower = narrow(model, 8, narrow_by="random", seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        columns = narrower.get_input_embeddings().weight.T
        chosen.append([next(i for i in range(HIDDEN) if torch.equal(words[:, i], column)) for column in columns])
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert chosen[0] != chosen[2]


@pytest.mark.parametrize("headless", [False, True])
def test_transformers_alone_loads_a_narrow_model(model_type: str, headless: bool, tmp_path: Path) -> None:
    config = CONFIGS[model_type]()
    model = AutoModel.from_config(config).eval() if headless else random_model(config)
    narrower = narrow(model, **NARROW)
    narrower.save_pretrained(tmp_path)
    auto = AutoModel if headless else family_of(config).auto_class
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(narrower)
    assert not any(report.values())
    assert sizes_of(loaded.config) == Sizes(16, 2, 23)
    assert torch.equal(loaded(ids())[0], narrower(ids())[0])


def test_random_weights_of_any_size(model_type: str) -> None:
    teacher = random_model(CONFIGS[model_type]())
    options = {"hidden_size": 30, "num_attention_heads": 5, "intermediate_size": 44}
    student = build_student(teacher, 1, initialise="random", **options)
    assert sizes_of(student.config) == Sizes(30, 5, 44)
    assert logits(student).shape == (5, LENGTH, 101)


def test_what_follows_from_the_hidden_size() -> None:
    teacher = random_model(CONFIGS["bert"]())
    assert sizes_of(build_student(teacher, hidden_size=8).config) == Sizes(8, 1, 13)
    assert (
        sizes_of(build_student(random_model(CONFIGS["gpt2"](n_inner=None)), hidden_size=16).config).intermediate_size
        == 64
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 20}, "hidden_size is 20, which is not a multiple of 8.* take 16 or 24"),
        ({"hidden_size": 5}, "take 8$"),
        ({"hidden_size": 32}, "hidden_size is 32, but the teacher's is 24"),
        ({"intermediate_size": 41}, "intermediate_size is 41, but the teacher's is 40"),
        ({"hidden_size": 0}, "hidden_size is 0: it must be above 0"),
        ({"hidden_size": 16, "num_attention_heads": 1}, "heads would be 16 wide.* give a hidden_size of 8"),
        ({"num_attention_heads": 2}, "heads would be 12 wide.* give a hidden_size of 16"),
        ({"hidden_size": 16, "num_attention_heads": 3}, "not a multiple of num_attention_heads, 3"),
        ({"hidden_size": 16, "narrow_by": "magic"}, "narrow_by is 'magic': it must be 'importance' or 'random'"),
        ({"hidden_size": 20, "initialise": "random"}, "take 16 or 24, or give num_attention_heads"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        build_student(random_model(CONFIGS["bert"]()), **options)


def test_a_family_that_does_not_say_where_its_heads_are(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = random_model(CONFIGS["roberta"]())
    monkeypatch.setattr(type(family_of(teacher)), "widths", None)
    with pytest.raises(PotstillError, match="type 'roberta' cannot be made narrower"):
        build_student(teacher, hidden_size=16)
    assert sizes_of(build_student(teacher, hidden_size=16, initialise="random").config).hidden_size == 16


def test_layers_that_are_built_otherwise_are_refused(make_bert: Any) -> None:
    bert: BertForMaskedLM = make_bert()
    bert.bert.encoder.layer[2].intermediate = nn.Linear(HIDDEN, NEURONS)
    with pytest.raises(PotstillError, match="cannot be made narrower"):
        narrow(bert, 16)
