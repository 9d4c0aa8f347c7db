"""What a model's files say before the model is built, and weights that are no numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from potstill.errors import PotstillError
from potstill.finetuning.frozen import FrozenEncoder, FrozenEncoderConfig
from potstill.finetuning.models import load_as, load_config
from potstill.student import load_masked_lm
from potstill.student.weights import INDEX, Weights, check_finite

BERT = {"vocab_size": 101, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
BIG = 10**6


@pytest.fixture
def folder(make_bert: Callable[..., BertForMaskedLM], tmp_path: Path) -> Path:
    make_bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(load: Callable[[str], object], folder: Path) -> str:
    with pytest.raises(PotstillError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("load", [load_masked_lm, load_config])
@pytest.mark.parametrize(
    ("key", "value", "held"),
    [
        ("num_hidden_layers", BIG, "is 1,000,000: they hold 4 layers"),
        ("num_hidden_layers", 5, "is 5: they hold 4 layers"),
        ("hidden_size", BIG, "no tensor in them has such a dimension"),
        ("vocab_size", BIG, "the largest dimension in them is 101"),
        ("intermediate_size", BIG, "the largest dimension in them is 101"),
        ("max_position_embeddings", BIG, "they hold 19 positions"),
        ("type_vocab_size", BIG, "the largest dimension in them is 101"),
        ("num_attention_heads", BIG, "the largest dimension in them is 101"),
        ("num_labels", BIG, "the largest dimension in them is 101"),
        ("hidden_size", 10**30, "is a number of 31 digits"),
    ],
)
def test_a_config_that_asks_for_more_than_the_files_hold(
    load: Callable[[str], object], folder: Path, key: str, value: int, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("the model was built, which may take all memory")

    monkeypatch.setattr(PreTrainedModel, "__init__", built)
    edit_config(folder, **{key: value})
    message = refusal(load, folder)
    assert f"do not fit its config.json, whose {key} is " in message
    assert held in message


def test_the_names_that_an_architecture_has_for_sizes(tmp_path: Path) -> None:
    distil = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=20)
    DistilBertForMaskedLM(distil).save_pretrained(tmp_path / "distil")
    for key in ("n_layers", "dim", "hidden_dim", "num_hidden_layers"):
        good = (tmp_path / "distil" / "config.json").read_text()
        edit_config(tmp_path / "distil", **{key: BIG})
        assert f"whose {key} is 1,000,000" in refusal(load_masked_lm, tmp_path / "distil")
        (tmp_path / "distil" / "config.json").write_text(good)
    encoder = distil.to_dict()
    FrozenEncoder(FrozenEncoderConfig(encoder=encoder)).save_pretrained(tmp_path / "frozen")
    assert load_config(str(tmp_path / "frozen")).encoder["n_layers"] == 2
    edit_config(tmp_path / "frozen", encoder=encoder | {"n_layers": BIG})
    assert "whose n_layers is 1,000,000: they hold 2 layers" in refusal(load_config, tmp_path / "frozen")


def test_layers_that_share_their_weights(tmp_path: Path) -> None:
    config = AlbertConfig(**BERT, embedding_size=8, num_hidden_layers=6, num_hidden_groups=1)
    AlbertForMaskedLM(config).save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).num_hidden_layers == 6
    edit_config(tmp_path, num_hidden_layers=BIG)
    assert "no model applies a layer more than 1,000 times" in refusal(load_config, tmp_path)


def test_what_fits_is_let_pass(tmp_path: Path) -> None:
    RobertaForMaskedLM(RobertaConfig(**BERT, num_hidden_layers=1)).save_pretrained(tmp_path, max_shard_size="10KB")
    assert load_config(str(tmp_path)).vocab_size == 101
    assert Weights.read(tmp_path, "the model").layers == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", "is damaged"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[1]", "no JSON object"),
        ("{}", "names no files"),
        ('{"weight_map": {"a": 1}}', "names no files"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "which is no file beside it"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "model-1.safetensors is missing"),
    ],
)
def test_a_damaged_index(folder: Path, content: str, told: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(content)
    for load in (load_masked_lm, load_config):
        assert told in refusal(load, folder)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, b"\x02\0\0\0\0\0\0\0{}", b"version https://git-lfs"])
def test_weights_that_are_damaged_or_hold_nothing(folder: Path, damage: bytes) -> None:
    (folder / "model.safetensors").write_bytes(damage)
    for load in (load_masked_lm, load_config):
        assert "cannot be loaded" in refusal(load, folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number(folder: Path, bad: float) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.2.attention.self.query.weight"
    weights[name].view(-1)[7] = bad
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def with_head(name: str) -> object:
        return load_as(AutoModelForSequenceClassification, name, load_config(name), "model")

    for load in (load_masked_lm, with_head):
        message = refusal(load, folder)
        assert f"{name} has a weight that is not a finite number" in message
        assert "learning rate" not in message


def test_large_weights_are_numbers() -> None:
    model = torch.nn.Linear(4, 4)
    model.weight.data.fill_(3e38)  # whose sum is beyond the range
    check_finite(model, "the model")
    model.weight.data[1] = float("nan")
    with pytest.raises(PotstillError, match="weight has 4 weights that are not a finite number"):
        check_finite(model, "the model")
