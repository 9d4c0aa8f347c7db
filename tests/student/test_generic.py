"""The generic path: any architecture with one list of layers and output embeddings, and a sentence for every other."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families_samples import SIZES, random_model
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    CohereConfig,
    ErnieConfig,
    FlaubertConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LongformerConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RoFormerConfig,
    SmolLM3Config,
    ViTConfig,
    XLNetConfig,
)

from potstill.errors import PotstillError
from potstill.objective import Objective, SoftTargets, objective_from
from potstill.student import Reads, build_student, family_of, grow, load_masked_lm
from potstill.student.generic import Generic
from potstill.student.tensors import cast_parameters
from potstill.training.predictor import Predictor
from potstill.training.step import DistillationStep

HEADS = {"num_attention_heads": 4, "hidden_size": 32, "num_key_value_heads": 2}
ROPE = (
    SIZES | HEADS | {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 512}
)
STRIPES = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4, "use_sliding_window": True}

KNOWN: dict[str, Callable[..., PreTrainedConfig]] = {
    "ernie": lambda **options: ErnieConfig(**(SIZES | {"use_task_id": True} | options)),
    "roformer": lambda **options: RoFormerConfig(**(SIZES | {"embedding_size": 16} | options)),
    "opt": lambda **options: OPTConfig(**(SIZES | {"ffn_dim": 40, "word_embed_proj_dim": 12} | options)),
    "gpt_neox": lambda **options: GPTNeoXConfig(**(ROPE | options)),
    "llama": lambda **options: LlamaConfig(**(ROPE | options)),
    "qwen2": lambda **options: Qwen2Config(**(ROPE | STRIPES | options)),
}
"""Architectures without a family: encoders, decoders, narrow embeddings, shared keys, attention in stripes."""


@pytest.fixture(params=KNOWN)
def config(request: pytest.FixtureRequest) -> Callable[..., PreTrainedConfig]:
    return KNOWN[request.param]


def ids(rows: int = 3, length: int = 17, seed: int = 3) -> Tensor:
    return torch.randint(5, 101, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of(family: Any, model: PreTrainedModel, hidden: Tensor) -> Tensor:
    head = family.head(model)
    return F.linear(head.transform(hidden), head.weight, head.bias)


@pytest.mark.parametrize("tied", [True, False])
def test_encode_and_head_together_are_the_model(config: Callable[..., PreTrainedConfig], tied: bool) -> None:
    model = random_model(config(tie_word_embeddings=tied), torch.float64)
    family = family_of(model)
    assert type(family) is Generic
    assert family.unusable(model) is None
    forwards = {name: module.forward.__func__ for name, module in model.named_modules()}
    own = model(ids(), output_hidden_states=True)
    found = family.encode(model, ids(), Reads("all", {0, 1, 2, 3, -3}))
    assert found.hidden.keys() == {0, 1, 2, 3, -3, -1}
    torch.testing.assert_close(logits_of(family, model, found.last), own.logits, rtol=0, atol=1e-12)
    assert found.hidden[3] is found.last
    for number in (0, 1, 2, -3):
        assert torch.equal(found.hidden[number], own.hidden_states[number % 4 + 1])
    assert torch.equal(family.embed(model, ids()), own.hidden_states[0])
    # Nothing of it stays behind in the model.
    assert {name: module.forward.__func__ for name, module in model.named_modules()} == forwards


def test_gradients_are_those_of_the_model(config: Callable[..., PreTrainedConfig]) -> None:
    model = random_model(config(), torch.float64)
    family, weights = family_of(model), torch.randn(3, 17, 101, dtype=torch.float64)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    own = model(ids(), output_hidden_states=True)
    expected = gradients((own.logits * weights).sum() + own.hidden_states[2].square().sum())
    states = family.encode(model, ids(), Reads("all", {1}))
    found = gradients((logits_of(family, model, states.last) * weights).sum() + states.hidden[1].square().sum())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)


def test_a_student_of_all_layers_gives_the_teachers_logits(config: Callable[..., PreTrainedConfig]) -> None:
    teacher = random_model(config(), torch.float64)
    assert torch.equal(build_student(teacher, layers=range(4))(ids()).logits, teacher(ids()).logits)


def test_layers_keep_what_the_config_says_of_them(tmp_path: Path) -> None:
    teacher = random_model(KNOWN["qwen2"]())
    student = build_student(teacher, layers=[0, 2, 3])
    assert student.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    for new, old in enumerate([0, 2, 3]):
        for name, tensor in family_of(student).layers(student)[new].state_dict().items():
            assert torch.equal(tensor, teacher.state_dict()[f"model.layers.{old}.{name}"])
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.layer_types == student.config.layer_types
    assert torch.equal(loaded(ids()).logits, student(ids()).logits)


def test_layers_without_positions_stay_without_them() -> None:
    teacher = random_model(SmolLM3Config(**(ROPE | {"no_rope_layers": [1, 1, 1, 0]})))
    student = build_student(teacher, layers=[0, 3])
    assert student.config.no_rope_layers == [1, 0]
    assert [layer.self_attn.use_rope for layer in student.model.layers] == [1, 0]


def test_a_layer_that_is_wired_by_its_number_takes_no_other_place() -> None:
    teacher = random_model(KNOWN["llama"]())
    teacher.model.layers[2].self_attn.scaling *= 2
    with pytest.raises(
        PotstillError, match=r"^layer 2 of the teacher cannot be layer 1 .*its self_attn\.scaling is 0\.7"
    ):
        build_student(teacher, layers=[0, 2])
    build_student(teacher, layers=[0, 3])


def test_it_grows() -> None:
    striped = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    model = random_model(KNOWN["qwen2"](**striped))
    grown = grow(model, 4)
    assert [p.shape for p in grown.model.layers.parameters()] == [p.shape for p in model.model.layers.parameters()] * 2
    assert torch.equal(grown.model.layers[3].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
    assert grown.config.layer_types == ["sliding_attention", "full_attention"] * 2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_hidden_states_are_read_of_layers_that_are_compiled_or_run_again(compiled: bool, checkpointed: bool) -> None:
    plain = random_model(KNOWN["llama"](), torch.float64).train()
    other = build_student(plain, layers=range(4)).train()
    if checkpointed:
        other.gradient_checkpointing_enable()
    reads = Reads("all", {0, 2})
    predict = Predictor(other, reads)
    if compiled:
        predict.compile(backend="aot_eager")
    for seed in range(2):  # what is compiled runs twice
        results = []
        for states in (family_of(plain).encode(plain, ids(seed=seed), reads), predict(ids(seed=seed))):
            sum(hidden.square().sum() for hidden in states.hidden.values()).backward()
            results.append(states.hidden)
        for number, hidden in results[0].items():
            torch.testing.assert_close(results[1][number], hidden)
    for (name, expected), (_, found) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_copies_in_16_bits_keep_the_frequencies_of_positions(tied: bool) -> None:
    """In 16 bits they would be wrong by a hundredth, and the angle of token 400 by more than one."""
    model = random_model(KNOWN["llama"](tie_word_embeddings=tied))
    seen = []
    model.model.rotary_emb.register_forward_pre_hook(lambda module, _: seen.append(module.inv_freq.dtype))
    found = Predictor(model, Reads("all", {1}))(ids(2, 400), torch.bfloat16)
    assert found.hidden[1].dtype == found.last.dtype == torch.bfloat16
    expected = Predictor(model, Reads("all", {1}))(ids(2, 400))
    torch.testing.assert_close(found.last.float(), expected.last, rtol=0.1, atol=0.3)
    assert seen == [torch.float32] * 2

    copied = copy.deepcopy(model)
    cast_parameters(copied, torch.bfloat16)
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert copied.model.rotary_emb.inv_freq.dtype == torch.float32
    assert (copied.lm_head.weight is copied.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("name", ["opt", "gpt_neox", "llama"])
def test_twenty_steps_lower_the_loss(name: str) -> None:
    """Of a decoder: nothing is masked, and the soft targets of all tokens are learnt."""
    teacher = random_model(KNOWN[name]())
    step = DistillationStep(
        build_student(teacher), teacher, Objective([SoftTargets(weight=1, tokens="all")]), 0
    ).train()
    optimiser = torch.optim.Adam(step.parameters(), lr=3e-3)
    nothing = torch.zeros(8, 1, dtype=torch.int64), torch.full((8, 1), -100)
    losses = []
    for number in range(20):
        loss = step(ids(8, 17, seed=number), *nothing)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# What cannot take this path is told in one sentence.


REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "shared layers": (AlbertConfig(**SIZES, embedding_size=16), "has no list of its 4 layers: layers that share"),
    "two lists": (
        FlaubertConfig(vocab_size=101, emb_dim=24, n_layers=4, n_heads=3),
        r"has more than one list of 4 layers \(transformer.attentions and transformer.layer_norm1\)",
    ),
    "a cap": (Gemma2Config(**(ROPE | {"head_dim": 8})), "changes its logits after its output embeddings"),
    "a scale": (CohereConfig(**ROPE), "changes its logits after its output embeddings"),
    "padded": (LongformerConfig(**SIZES, attention_window=[4] * 4), "has layers that do not make one hidden state of"),
    "sees all": (XLNetConfig(vocab_size=101, d_model=24, n_layer=4, n_head=3, d_inner=40), "is no causal language mod"),
    "a decoder": (
        ErnieConfig(**SIZES, is_decoder=True),
        "is a decoder .is_decoder is set., and models of type 'ernie'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_missing_is_told(kind: str, tmp_path: Path) -> None:
    config, says = REFUSED[kind]
    model = random_model(config)
    with pytest.raises(PotstillError, match=f"^the teacher cannot be used: it {says}"):
        build_student(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(PotstillError, match=f"^the teacher '.*' cannot be used: it {says}"):
        load_masked_lm(tmp_path)


def test_a_model_without_output_embeddings() -> None:
    model = random_model(KNOWN["llama"]())
    model.get_output_embeddings = lambda: torch.nn.Identity()
    assert "has no output embeddings" in str(family_of(model).unusable(model))


def test_a_model_that_does_not_run_on_token_ids_alone() -> None:
    model = random_model(KNOWN["llama"]())

    def fail(*_: object, **__: object) -> None:
        raise ValueError("images are missing")

    model.forward = fail
    assert family_of(model).unusable(model) == "does not run on token ids alone, or not in parts (images are missing)"


def test_a_vision_model_as_teacher(tmp_path: Path) -> None:
    ViTConfig(architectures=["ViTModel"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"unread")
    with pytest.raises(PotstillError, match=r"'vit' are not supported: they read pixel_values"):
        load_masked_lm(tmp_path)


def test_a_loss_that_reads_attention_is_refused() -> None:
    config = KNOWN["llama"]()
    objective = objective_from({"attention_relations": {"weight": 1}})
    with pytest.raises(PotstillError, match="does not know where models of type 'llama' make them"):
        objective.check(config, config)
    model = random_model(config)
    with pytest.raises(PotstillError, match="attention_relations cannot read a model of type 'llama'"):
        family_of(model).encode(model, ids(), Reads(attention={-1}))


def test_loading_says_that_the_generic_path_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(KNOWN["llama"]())
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = load_masked_lm(tmp_path)
    assert caplog.messages == [
        f"The teacher '{tmp_path}' is of type 'llama', which potstill has no code for: its own forward pass is used "
        "(the generic path)."
    ]
    assert torch.equal(loaded(ids()).logits, model(ids()).logits)


def test_surplus_and_missing_layers_are_told(tmp_path: Path) -> None:
    random_model(KNOWN["llama"]()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    for depth, says in ((3, "the config has no place for model.layers.3."), (5, "they hold 4 layers")):
        file.write_text(json.dumps(raw | {"num_hidden_layers": depth}))
        with pytest.raises(PotstillError, match=says):
            load_masked_lm(tmp_path)
