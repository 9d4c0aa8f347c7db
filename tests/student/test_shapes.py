"""The shapes of Turc et al. 2019: their sizes, and what contradicts them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from potstill.bench.train_arguments import BenchTrainArguments
from potstill.errors import PotstillError
from potstill.recipe import DistillationArguments, PretrainingArguments
from potstill.student.shapes import NAMED, sizes_of_shape
from potstill.training.pretrain import initial_model

PUBLISHED = {"tiny": 4.4, "mini": 11.3, "small": 29.1, "medium": 41.7, "base": 110.1}
"""Millions of parameters, as published."""

SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")


def of(kind: Any, tmp_path: Path, **options: Any) -> Any:
    return kind(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("name", NAMED)
def test_the_named_models_have_the_published_parameters(name: str) -> None:
    """The paper counts the pooler and both heads, those of masked LM and of the next sentence."""
    with torch.device("meta"):
        model = BertForPreTraining(BertConfig(vocab_size=30522, **sizes_of_shape(name)))
    assert round(model.num_parameters() / 1e6, 1) == PUBLISHED[name]


def test_names_are_those_of_five_models() -> None:
    for name, (depth, width) in NAMED.items():
        assert sizes_of_shape(name) == sizes_of_shape(f"{depth}x{width}") == sizes_of_shape(f" {depth} × {width}")
    assert tuple(sizes_of_shape("Mini").values()) == (4, 256, 4, 1024)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("huge", "--shape is 'huge': give tiny, mini, small, medium, base, or layers and width such as 6x256"),
        ("0x128", "give tiny"),
        ("2x", "give tiny"),
        ("", "give tiny"),
        ("2x100", "the width must be a multiple of 64"),
    ],
)
def test_what_is_no_shape(shape: str, message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        sizes_of_shape(shape)


def test_a_new_model_has_the_shape(tmp_path: Path) -> None:
    args = of(PretrainingArguments, tmp_path, shape="3x64", dropout=0.0)
    config = initial_model(args, args.num_hidden_layers, 50, 0).config
    assert [getattr(config, name) for name in SIZES] == [3, 64, 1, 256]
    plain = of(PretrainingArguments, tmp_path)
    assert (plain.num_hidden_layers, plain.hidden_size, plain.num_attention_heads) == (12, 768, None)
    grown = of(PretrainingArguments, tmp_path, shape="4x64", grow="2,4")
    assert grown.depths() == [2, 4]
    student = of(DistillationArguments, tmp_path, shape="mini")
    assert [getattr(student, name) for name in SIZES] == [4, 256, 4, 1024]
    assert of(BenchTrainArguments, tmp_path, shape="tiny", pretrain=True).hidden_size == 128
    assert of(BenchTrainArguments, tmp_path).hidden_size is None


def test_a_shape_and_a_size_that_contradict_each_other(tmp_path: Path) -> None:
    same = of(PretrainingArguments, tmp_path, shape="mini", num_hidden_layers=4, intermediate_size=1024)
    assert same.num_hidden_layers == 4
    for kind in (PretrainingArguments, DistillationArguments):
        # 12 and 768 are the sizes that a new model has if none is given.
        for name, value in (("num_hidden_layers", 12), ("hidden_size", 768), ("num_attention_heads", 2)):
            with pytest.raises(PotstillError, match=f"--shape mini has {name} .*, but --{name} is {value}: leave one"):
                of(kind, tmp_path, shape="mini", **{name: value})
    with pytest.raises(PotstillError, match="--grow ends at 6 layers but --num_hidden_layers is 4"):
        of(PretrainingArguments, tmp_path, shape="mini", grow="3,6").depths()
    with pytest.raises(PotstillError, match="--shape is 'mini': it is for a new model: leave it out, because --model"):
        of(PretrainingArguments, tmp_path, shape="mini", model="folder")
