"""What is particular to ModernBERT: layers of two kinds, a first layer without LayerNorm, rotary positions."""

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families_samples import CONFIGS, random_model
from packaging.version import Version
from runs import pretraining
from samples import BLOCK_SIZE
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM, ModernBertForMaskedLM, PreTrainedModel

from potstill import DistillationArguments, PotstillError, distill, prepare, pretrain
from potstill.bench.flops import forward_flops
from potstill.student import LAST_HIDDEN, build_student, choose_layers, family_of, grow, load_masked_lm
from potstill.student.interface import Shape
from potstill.student.modernbert import ModernBert
from potstill.training.predictor import Predictor
from potstill.training.teachers import FrozenTeacher

FULL, LOCAL = "full_attention", "sliding_attention"
LONG = 32
ROPE = {FULL: {"rope_type": "default", "rope_theta": 90.0}, LOCAL: {"rope_type": "default", "rope_theta": 7.0}}


def model_of(dtype: torch.dtype = torch.float64, **options: Any) -> PreTrainedModel:
    """A random model with windows of 8 tokens, whose positions turn fast."""
    sizes = {"num_hidden_layers": 7, "max_position_embeddings": 64, "rope_parameters": ROPE}
    return random_model(CONFIGS["modernbert"](**(sizes | options)), dtype)


def ids(length: int = LONG, rows: int = 3) -> Tensor:
    return torch.randint(5, 101, (rows, length))


def kinds(text: str) -> list[str]:
    """``"GLL"`` as a config says it."""
    return [FULL if letter == "G" else LOCAL for letter in text]


def layers_told(model: PreTrainedModel, input_ids: Tensor) -> list[dict[str, Any]]:
    """What `encode` calls each layer with."""
    told: list[dict[str, Any]] = []

    def note(layer: nn.Module, args: Any, options: dict[str, Any]) -> None:
        told.append({"hidden_states": args[0], **options})

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.layers]
    family_of(model).encode(model, input_ids)
    for hook in hooks:
        hook.remove()
    return told


# What it computes.


def naive_hidden(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The last hidden states (B, L, H), written by hand."""
    state, config = model.state_dict(), model.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def norm(x: Tensor, name: str) -> Tensor:
        weight = model.get_parameter(f"model.{name}.weight")
        centred = x - x.mean(-1, keepdim=True)
        return weight * centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def turned(x: Tensor, theta: float) -> Tensor:
        """(B, heads, L, width), each pair (i, i + width / 2) turned by its position's angle."""
        angles = torch.tensor(
            [[position * theta ** (-2 * i / width) for i in range(width // 2)] for position in range(x.shape[2])],
            dtype=x.dtype,
        )
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    hidden = norm(model.get_parameter("model.embeddings.tok_embeddings.weight")[input_ids], "embeddings.norm")
    for number, kind in enumerate(config.layer_types):
        layer = f"model.layers.{number}"
        normed = hidden if number == 0 else norm(hidden, f"layers.{number}.attn_norm")
        qkv = normed @ model.get_parameter(f"{layer}.attn.Wqkv.weight").T
        query, key, value = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in qkv.chunk(3, -1))
        theta = config.rope_parameters[kind]["rope_theta"]
        scores = turned(query, theta) @ turned(key, theta).transpose(-1, -2) / math.sqrt(width)
        for i, j in itertools.product(range(hidden.shape[1]), repeat=2):
            if kind == LOCAL and abs(i - j) > config.local_attention // 2:
                scores[:, :, i, j] = -math.inf
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + mixed @ model.get_parameter(f"{layer}.attn.Wo.weight").T
        both = norm(hidden, f"layers.{number}.mlp_norm") @ model.get_parameter(f"{layer}.mlp.Wi.weight").T
        first, gate = both.chunk(2, -1)
        gelu = first * (1 + torch.erf(first / math.sqrt(2))) / 2
        hidden = hidden + (gelu * gate) @ model.get_parameter(f"{layer}.mlp.Wo.weight").T
    assert len(state) == 4 + 6 * config.num_hidden_layers - 1 + 3
    return norm(hidden, "final_norm")


def test_it_computes_what_it_is_said_to() -> None:
    """Transformers turns queries and keys in float32, so no more digits are equal."""
    model, input_ids = model_of(num_hidden_layers=4), ids()
    expected = naive_hidden(model, input_ids)
    hidden = family_of(model).encode(model, input_ids).last
    torch.testing.assert_close(hidden, expected, rtol=0, atol=2e-5)

    upstream = torch.randn_like(hidden)
    parameters = dict(model.model.named_parameters())
    theirs = torch.autograd.grad(expected, list(parameters.values()), upstream)
    for name, mine, other in zip(
        parameters, torch.autograd.grad(hidden, list(parameters.values()), upstream), theirs, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 9, LONG])
def test_encode_is_the_models_own_forward_at_every_length(length: int, attention: str) -> None:
    """A window of 8 reaches 4 tokens on either side, so that 5 tokens see each other."""
    model, input_ids = model_of(), ids(length)
    model.set_attn_implementation(attention)
    family = family_of(model)
    head = family.head(model)
    hidden = family.encode(model, input_ids).last
    torch.testing.assert_close(
        head.transform(hidden) @ head.weight.T + head.bias, model(input_ids).logits, rtol=0, atol=1e-12
    )


def test_only_layers_that_hide_something_get_a_mask() -> None:
    model = model_of()
    for length, masked in ((5, False), (6, True)):
        told = [given["attention_mask"] is not None for given in layers_told(model, ids(length))]
        assert told == [masked and kind == LOCAL for kind in kinds("GLLGLLG")]


def test_rotary_frequencies_keep_their_precision_in_16_bits() -> None:
    """In bfloat16 the angle of position 500 would be wrong by a radian and more."""
    teacher = model_of(torch.float32)
    student = build_student(teacher)
    frozen = FrozenTeacher(teacher, LAST_HIDDEN)
    frozen(ids(), torch.bfloat16)
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: Any) -> None:
        seen.extend(getattr(module, f"{kind}_inv_freq") for kind in (FULL, LOCAL))

    frozen._predictors[torch.bfloat16].model.model.rotary_emb.register_forward_pre_hook(note)
    frozen(ids(), torch.bfloat16)
    student.model.rotary_emb.register_forward_pre_hook(note)
    hidden = Predictor(student, LAST_HIDDEN)(ids(), torch.bfloat16).last
    assert hidden.dtype == torch.bfloat16
    assert len(seen) == 8
    assert {frequencies.dtype for frequencies in seen} == {torch.float32}


def test_layers_of_one_kind_are_compiled_once() -> None:
    model, input_ids = model_of(torch.float32), ids()
    expected = family_of(model).encode(model, input_ids).last
    counter = CompileCounter()
    predictor = Predictor(model, LAST_HIDDEN)
    predictor.compile(backend=counter)
    torch.testing.assert_close(predictor(input_ids).last, expected)
    assert counter.frame_count == 3  # the first layer, the local ones, the other global ones


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.19"),
    reason="transformers before 5.19 computes the angles of positions by matrix products, which are counted too",
)
@pytest.mark.parametrize("length", [3, 5, 6, 20])
def test_flops(length: int) -> None:
    """Of what PyTorch counts, that is less in which a window leaves tokens out."""
    model = model_of(torch.float32)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids(length, rows=1))
    seen = sum(abs(i - j) <= 4 for i, j in itertools.product(range(length), repeat=2))
    left_out = 4 * 4 * 24 * (length**2 - seen)  # of 4 local layers, 24 wide
    assert length * forward_flops(model, length) == pytest.approx(counter.get_total_flops() - left_out)


# Which layers a student copies.


@pytest.mark.parametrize(
    ("depth", "rule", "expected"),
    [
        (6, "alternate", [0, 2, 4, 6, 8, 11]),
        (6, "even", [0, 2, 4, 6, 8, 10]),
        (6, "first", [0, 1, 2, 3, 4, 5]),
        (6, "last", [0, 7, 8, 9, 10, 11]),
        (1, "alternate", [0]),
        (2, "last", [0, 11]),
        (12, "last", list(range(12))),
    ],
)
def test_the_student_of_a_rule_has_the_teachers_stripe(
    depth: int, rule: str, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = model_of(torch.float32, num_hidden_layers=12)
    with caplog.at_level(logging.INFO):
        student = build_student(teacher, depth, rule)
    assert student.config.layer_types == kinds("GLLGLLGLLGLL"[:depth])
    assert [layer.attention_type for layer in student.model.layers] == student.config.layer_types
    for number, layer in enumerate(expected):
        mine, theirs = student.model.layers[number], teacher.model.layers[layer]
        assert torch.equal(mine.attn.Wqkv.weight, theirs.attn.Wqkv.weight)
    alone = choose_layers(12, depth, rule)
    ours, theirs = (",".join(map(str, layers)) for layers in (expected, alone))
    line = (
        f"The student copies the teacher's layers {ours}. They were chosen so that each kind of layer comes where the "
        f"teacher has it; the rule {rule!r} alone would choose {theirs}."
    )
    moved = [] if alone == expected else [line]
    assert [record.getMessage() for record in caplog.records] == moved


@pytest.mark.parametrize("stripe", ["GLLGLLGLL", "GLGLGLGLG", "GGGGGGGGG", "GLLLLLLLL", "GGLLGLGGL"])
def test_no_choice_with_the_stripe_lies_nearer(stripe: str) -> None:
    config = CONFIGS["modernbert"](num_hidden_layers=9, layer_types=kinds(stripe))
    for depth, rule in itertools.product(range(1, 10), ("alternate", "even", "first", "last")):
        chosen = choose_layers(9, depth, rule)
        found = ModernBert().adjust_layers(config, chosen)
        fitting = [
            layers
            for layers in itertools.combinations(range(9), depth)
            if layers[0] == 0 and all(stripe[layer] == stripe[place] for place, layer in enumerate(layers))
        ]
        assert tuple(found) in fitting
        distances = [sum(abs(a - b) for a, b in zip(layers, chosen, strict=True)) for layers in fitting]
        assert distances[fitting.index(tuple(found))] == min(distances)


def test_the_student_of_modernbert_base_has_its_stripe() -> None:
    config = CONFIGS["modernbert"](num_hidden_layers=22)
    layers = ModernBert().adjust_layers(config, choose_layers(22, 11))
    assert layers == [0, 2, 4, 6, 8, 11, 12, 14, 17, 18, 20]
    assert ModernBert().student_config(config, layers).layer_types == config.layer_types[:11]


def test_listed_layers_keep_their_kind(tmp_path: Path) -> None:
    """Each computes what the teacher's does, here and where it is loaded by transformers alone."""
    teacher = model_of()
    student = build_student(teacher, layers="0,5,3,6,6")
    assert student.config.layer_types == kinds("GLGGG")
    student.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.layer_types == kinds("GLGGG")
    input_ids = ids()
    assert torch.equal(loaded(input_ids).logits, student(input_ids).logits)

    for layer, number, told in zip(student.model.layers, (0, 5, 3, 6, 6), layers_told(student, input_ids), strict=True):
        original = teacher.model.layers[number]
        assert torch.equal(layer(**told), original(**told))
        assert (told["attention_mask"] is not None) == (original.attention_type == LOCAL)


@pytest.mark.parametrize("layers", ["3,0", "1,2", "0,3,0"])
def test_the_first_layer_can_be_the_first_alone(layers: str) -> None:
    with pytest.raises(PotstillError, match=f"layers {layers} of a ModernBERT .* list it first and nowhere else"):
        build_student(model_of(torch.float32), layers=layers)


@pytest.mark.parametrize("biases", [True, False])
def test_a_student_of_all_layers_gives_the_teachers_logits_beyond_the_window(biases: bool) -> None:
    names = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias")
    teacher, input_ids = model_of(**dict.fromkeys(names, biases)), ids()
    student = build_student(teacher, layers=range(7))
    assert torch.equal(student(input_ids).logits, teacher(input_ids).logits)
    assert (family_of(student).head(student).bias is not None) == biases


# Models as they lie on disk.


def test_a_config_of_before_transformers_5(tmp_path: Path) -> None:
    """With its stripe in one number, its thetas by their old names, and rows of the vocabulary to spare."""
    rope = {FULL: ROPE[FULL] | {"rope_theta": 500.0}, LOCAL: ROPE[LOCAL] | {"rope_theta": 20.0}}
    model = model_of(torch.float32, layer_types=kinds("GLGLGLG"), vocab_size=128, rope_parameters=rope)
    model.save_pretrained(tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    config = json.loads(file.read_text())
    del config["layer_types"], config["rope_parameters"]
    config |= {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 20.0}
    config |= {"reference_compile": False, "position_embedding_type": "absolute", "layer_norm_eps": 1e-5}
    file.write_text(json.dumps(config))

    teacher, input_ids = load_masked_lm(tmp_path / "teacher"), ids()
    assert torch.equal(teacher(input_ids).logits, model(input_ids).logits)
    for layers, stated in (("alternate", True), ([0, 2, 4], False)):
        student = build_student(teacher, layers=layers)
        student.save_pretrained(tmp_path / str(stated))
        # A program that reads the number, and not the list, must not read a wrong one.
        saved = json.loads((tmp_path / str(stated) / "config.json").read_text())
        assert ("global_attn_every_n_layers" in saved) == stated
        loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / str(stated))
        assert loaded.config.layer_types == kinds("GLG" if stated else "GGG")
        assert loaded.config.rope_parameters == teacher.config.rope_parameters
        assert loaded.config.vocab_size == 128
        assert torch.equal(loaded(input_ids).logits, student(input_ids).logits)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_change_with_the_length_are_refused(rope_type: str) -> None:
    config = CONFIGS["modernbert"]()
    config.rope_parameters[FULL]["rope_type"] = rope_type
    assert f"has '{rope_type}' rotary positions" in (ModernBert().unsupported(config) or "")
    assert ModernBert().unsupported(CONFIGS["modernbert"]()) is None


# New models.


@pytest.mark.parametrize(
    ("shallow", "stated", "deep"),
    [
        ("GL", None, "GLLGLL"),
        ("GLL", None, "GLLGLLGL"),
        ("GLLG", None, "GLLGLLGLLGLL"),
        ("GLLLG", None, "GLLLGLLLGLL"),
        ("G", 2, "GLGL"),
        ("GL", 2, "GLGL"),
        ("GGG", None, "GGGGG"),
        ("GGL", None, "GGLGGLGG"),
    ],
)
def test_a_grown_model_goes_on_with_the_stripe(shallow: str, stated: int | None, deep: str) -> None:
    options = {} if stated is None else {"global_attn_every_n_layers": stated}
    model = model_of(torch.float32, num_hidden_layers=len(shallow), layer_types=kinds(shallow), **options)
    grown = grow(model, len(deep))
    assert grown.config.layer_types == [layer.attention_type for layer in grown.model.layers] == kinds(deep)
    sources = [family_of(model).grown_from(model.config, place) for place in range(len(deep))]
    assert sources[: len(shallow)] == list(range(len(shallow)))
    for place, source in enumerate(sources):
        mine, theirs = grown.model.layers[place], model.model.layers[source]
        assert torch.equal(mine.mlp.Wi.weight, theirs.mlp.Wi.weight)
        assert mine.attention_type == theirs.attention_type or shallow == "G"  # which has no local one
        if place:  # the LayerNorm of the embeddings is the one right before the first layer's attention
            norm = model.model.embeddings.norm if source == 0 else theirs.attn_norm
            assert torch.equal(mine.attn_norm.weight, norm.weight)
    input_ids = ids()
    assert torch.equal(grow(model, len(shallow))(input_ids).logits, model(input_ids).logits)


def test_a_grown_model_of_16_bits_has_the_frequencies_of_its_config() -> None:
    grown = grow(model_of(torch.float32, num_hidden_layers=3).bfloat16(), 6)
    assert grown.dtype == torch.bfloat16
    assert grown.model.rotary_emb.full_attention_inv_freq.dtype == torch.float32


def test_a_new_model_grows_learns_and_is_distilled(text_path: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "blocks"
    options = {"train_tokenizer": True, "model_type": "modernbert", "vocab_size": 300, "block_size": BLOCK_SIZE}
    prepare([str(text_path)], str(corpus), validation_fraction=0.2, num_proc=1, **options)
    args = pretraining(corpus, tmp_path / "grown", model_type="modernbert", grow="2,4", max_steps=20, dropout=0.05)
    grown = pretrain(args)
    config = AutoConfig.from_pretrained(grown)
    assert config.layer_types == kinds("GLLG")
    assert (config.pad_token_id, config.cls_token_id, config.sep_token_id) == (1, 0, 2)
    assert (config.embedding_dropout, config.attention_dropout, config.mlp_dropout) == (0.05,) * 3
    history = json.loads((grown / "results.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2

    args = DistillationArguments(
        teacher=str(grown), corpus=str(corpus), output_dir=str(tmp_path / "student"), max_steps=2, use_cpu=True
    )
    student = AutoModelForMaskedLM.from_pretrained(distill(args))
    assert type(student) is ModernBertForMaskedLM
    assert student.config.layer_types == kinds("GL")


def test_heads_of_odd_width_are_refused() -> None:
    shape = Shape(60, 9, 2, 3, 16, 32, 0.1)
    with pytest.raises(PotstillError, match="must have an even width, but 9 / 3 is 3"):
        ModernBert().new_config(shape)
