"""DeBERTa in all its shapes: the distances, the convolution, the two heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from families_samples import SIZES, random_model
from packaging.version import Version
from transformers import AutoModelForMaskedLM, DebertaV2Config, ElectraConfig, ElectraForPreTraining

from potstill.errors import PotstillError
from potstill.student import Reads, build_student, family_of, load_masked_lm

V3 = {
    "relative_attention": True,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "max_relative_positions": -1,
    "legacy": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "v3": V3,
    "old head": V3 | {"legacy": True},
    "xlarge": V3 | {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 8},
    "own projections": V3 | {"share_att_key": False},
    "contents to distances": V3 | {"pos_att_type": ["c2p"], "share_att_key": False},
    "distances to contents": V3 | {"pos_att_type": ["p2c"], "share_att_key": False},
    "no buckets": V3 | {"position_buckets": -1, "max_relative_positions": 9},
    "plain embeddings of distances": V3 | {"norm_rel_ebd": "none"},
    "positions alone": {"relative_attention": False, "position_biased_input": True, "type_vocab_size": 2},
    "narrow embeddings": V3 | {"embedding_size": 16, "legacy": True},
}


newer_head_loads = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="transformers before 5.20 loads no newer head"
)


@pytest.fixture(params=SHAPES)
def config(request: pytest.FixtureRequest) -> DebertaV2Config:
    return DebertaV2Config(**(SIZES | SHAPES[request.param]))


@pytest.mark.parametrize("length", [1, 4, 19])
def test_encode_and_head_are_the_model_with_its_gradients(config: DebertaV2Config, length: int) -> None:
    model = random_model(config, torch.float64)
    ids = torch.randint(0, 101, (3, length), generator=torch.Generator().manual_seed(length))
    family, weights = family_of(model), torch.randn(3, length, 101, dtype=torch.float64)
    gradients = []
    own = model(ids, output_hidden_states=True)
    states = family.encode(model, ids, Reads("all", {0, 1}))
    head = family.head(model)
    logits = F.linear(head.transform(states.last), head.weight, head.bias)
    torch.testing.assert_close(logits, own.logits, rtol=0, atol=1e-12)
    for number in (0, 1, -1):
        torch.testing.assert_close(states.hidden[number], own.hidden_states[number % 4 + 1], rtol=0, atol=1e-12)
    for loss in (own.logits, logits):
        model.zero_grad()
        (loss * weights).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-9)


@newer_head_loads
def test_a_student_of_all_layers_gives_the_teachers_logits(config: DebertaV2Config, tmp_path: Path) -> None:
    teacher = random_model(config, torch.float64)
    ids = torch.arange(5, 24)[None]
    student = build_student(teacher, layers=range(4))
    assert torch.equal(student(ids).logits, teacher(ids).logits)
    half = build_student(teacher)
    half.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()(ids).logits
    torch.testing.assert_close(loaded, half(ids).logits, rtol=0, atol=1e-12)  # memory may be aligned otherwise


@newer_head_loads
def test_the_newer_head_is_found_where_the_config_does_not_say_it(tmp_path: Path) -> None:
    model = random_model(DebertaV2Config(**(SIZES | V3)))
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"legacy": false,', ""))
    loaded = load_masked_lm(tmp_path)
    assert loaded.config.legacy is False
    ids = torch.arange(5, 24)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_newer_head_needs_a_newer_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(DebertaV2Config(**(SIZES | V3))).save_pretrained(tmp_path)
    monkeypatch.setattr(transformers, "__version__", "5.19.0")
    with pytest.raises(PotstillError, match=r"it has a head that transformers loads from 5\.20 on: install a newer"):
        load_masked_lm(tmp_path)


def test_a_discriminator_has_no_head_that_was_trained(tmp_path: Path) -> None:
    model = random_model(DebertaV2Config(**(SIZES | V3)))
    model.mask_predictions = torch.nn.Linear(24, 1)
    model.save_pretrained(tmp_path)
    with pytest.raises(PotstillError, match=r"it is a discriminator .*without a trained masked-LM head: use a"):
        load_masked_lm(tmp_path)


def test_a_discriminator_of_electra_has_no_head(tmp_path: Path) -> None:
    ElectraForPreTraining(ElectraConfig(**SIZES, embedding_size=24)).save_pretrained(tmp_path)
    with pytest.raises(PotstillError, match=r"it is a discriminator .*an encoder without a masked-LM head: use"):
        load_masked_lm(tmp_path)
