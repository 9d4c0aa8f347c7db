from collections.abc import Callable

import pytest
import torch
from families_samples import CONFIGS, random_model
from transformers import BertConfig, DistilBertConfig, PreTrainedModel, RobertaConfig

from potstill.errors import PotstillError
from potstill.student import Reads, family_of
from potstill.student.bert import Bert
from potstill.student.distilbert import DistilBert
from potstill.student.family import family_of_type
from potstill.student.roberta import Roberta

PROJECTIONS = {
    "query": "query q_lin query_proj q",
    "key": "key k_lin key_proj k",
    "value": "value v_lin value_proj v",
}
"""What an attention makes → what architectures call the matrix that makes it."""


@pytest.fixture(params=CONFIGS)
def model_of(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    def make(**options: object) -> PreTrainedModel:
        return random_model(CONFIGS[request.param](**options), torch.float64)

    return make


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encode_and_head_together_are_the_model(
    model_of: Callable[..., PreTrainedModel], input_ids: torch.Tensor, tied: bool, attention: str
) -> None:
    model = model_of(tie_word_embeddings=tied)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("its attention is written out")
    model.set_attn_implementation(attention)
    family = family_of(model)
    hidden = family.encode(model, input_ids).last
    head = family.head(model)
    logits = torch.nn.functional.linear(head.transform(hidden), head.weight, head.bias)
    torch.testing.assert_close(logits, model(input_ids).logits, rtol=0, atol=1e-12)
    assert (head.weight is model.get_input_embeddings().weight) == tied


def test_embed_is_what_the_first_layer_reads(model_of: Callable[..., PreTrainedModel], input_ids: torch.Tensor) -> None:
    model = model_of()
    states = model(input_ids, output_hidden_states=True).hidden_states
    assert torch.equal(family_of(model).embed(model, input_ids), states[0])
    assert torch.equal(family_of(model).encode(model, input_ids).last, states[-1])


def test_encode_keeps_what_is_read_and_runs_no_layer_above(
    model_of: Callable[..., PreTrainedModel], input_ids: torch.Tensor
) -> None:
    model = model_of()
    family, depth = family_of(model), model.config.num_hidden_layers
    expected = model(input_ids, output_hidden_states=True).hidden_states
    layers = list(model.get_submodule(family.layer_prefix.rstrip(".")).children())
    ran = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))

    states = family.encode(model, input_ids, Reads(hidden={0, 1, -1, depth - 1}))
    assert states.hidden.keys() == {0, 1, -1, depth - 1}
    for layer, hidden in states.hidden.items():
        assert torch.equal(hidden, expected[layer % depth + 1])
    assert ran == list(range(depth))

    ran.clear()
    states = family.encode(model, input_ids, Reads(hidden={0}, attention={1}))
    assert states.hidden.keys() == {0}
    assert states.attention.keys() == {1}
    assert ran == [0]


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_attention_inputs_are_what_attention_computes(
    model_of: Callable[..., PreTrainedModel], input_ids: torch.Tensor, layer: int
) -> None:
    model = model_of()
    family = family_of(model)
    module = list(model.get_submodule(family.layer_prefix.rstrip(".")).children())[layer]
    seen = {}
    for name, part in module.named_modules():
        for kind, names in PROJECTIONS.items():
            if name.split(".")[-1] in names.split():  # the first call is that on tokens: distances may come after it
                part.register_forward_hook(lambda module, inputs, output, kind=kind: _keep_first(seen, kind, output))
        if name.split(".")[-1] in ("c_attn", "Wqkv"):  # all three side by side
            part.register_forward_hook(
                lambda *call: seen.update(zip(PROJECTIONS, call[2].chunk(3, dim=-1), strict=True))
            )
    model(input_ids)
    expected = dict(seen)
    inputs = family.encode(model, input_ids, Reads(attention={layer})).attention[layer]
    assert expected.keys() == {"query", "key", "value"}
    for kind, output in expected.items():
        assert torch.equal(getattr(inputs, kind), output)
    assert inputs.heads == model.config.num_attention_heads


def _keep_first(seen: dict[str, torch.Tensor], kind: str, output: torch.Tensor) -> None:
    seen.setdefault(kind, output)


def test_encode_leaves_the_head_alone_and_lets_gradients_through(
    model_of: Callable[..., PreTrainedModel], input_ids: torch.Tensor
) -> None:
    model = model_of(tie_word_embeddings=False).train()
    called = []
    model.get_output_embeddings().register_forward_hook(lambda *_: called.append(True))
    family = family_of(model)
    hidden = family.encode(model, input_ids).last
    assert not called
    family.head(model).transform(hidden).sum().backward()
    written = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    unwritten = {name for name, _ in model.named_parameters()} - written
    assert all(
        name.endswith(("lm_head.weight", "lm_head.bias", "predictions.bias"))
        or any(part in name for part in ("decoder", "vocab_projector", "generator_lm_head"))
        for name in unwritten
    )


def test_layer_prefix_begins_exactly_the_tensors_of_the_layers(model_of: Callable[..., PreTrainedModel]) -> None:
    model = model_of()
    prefix = family_of(model).layer_prefix
    numbers = {name.removeprefix(prefix).split(".")[0] for name in model.state_dict() if name.startswith(prefix)}
    assert numbers == {str(i) for i in range(model.config.num_hidden_layers)}
    assert all(name.startswith(prefix) for name in model.state_dict() if ".layer." in name)


def test_family_of_a_config() -> None:
    assert isinstance(family_of(BertConfig()), Bert)
    assert isinstance(family_of(DistilBertConfig()), DistilBert)
    assert isinstance(family_of(RobertaConfig()), Roberta)


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("t5", "they are encoder-decoders"),
        ("bart", "they are encoder-decoders"),
        ("vit", r"they read pixel_values \(images or sound\)"),
        ("wav2vec2", r"they read input_values \(images or sound\)"),
        ("dpr", "transformers has no language-model head for them"),
        ("made-up", "has no models of this type"),
        (None, "has no models of this type"),
    ],
)
def test_what_is_no_language_model_is_refused_by_name(model_type: str | None, says: str) -> None:
    with pytest.raises(PotstillError, match=f"^models of type {model_type!r} are not supported: .*{says}"):
        family_of_type(model_type)
