"""What is counted is what formulas say: parameters, weights that are read, FLOPs; for BERTs and for ELMo's shape."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DebertaV2Config, DistilBertConfig, DistilBertForMaskedLM

from potstill.bench.flops import forward_flops
from potstill.bench.inference.bench import _counted
from potstill.bench.inference.counting import Counted, count
from potstill.bench.inference.elmo import CHARACTERS, FILTERS, ElmoShaped, characters_of
from potstill.bench.inference.models import Model, read_models
from potstill.student import load_masked_lm


def test_flops_are_those_of_the_formula_at_every_length(teacher_folder: Path) -> None:
    (model,) = read_models([("teacher", str(teacher_folder))], None)
    lengths = list(range(1, 33))
    counted = _counted(model, lengths)
    whole = load_masked_lm(str(teacher_folder))
    assert list(counted.flops) == lengths
    for length in lengths:
        assert counted.flops[length] == forward_flops(whole, length) * length
    assert counted.parameters == sum(parameter.numel() for parameter in whole.parameters())
    assert counted.encoder_parameters == sum(parameter.numel() for parameter in whole.bert.parameters())


def test_weights_that_are_read_are_all_but_the_tables(teacher_folder: Path) -> None:
    (model,) = read_models([("teacher", str(teacher_folder))], None)
    counted = _counted(model, [8])
    whole = load_masked_lm(str(teacher_folder))
    linear = sum(module.weight.numel() for module in whole.modules() if isinstance(module, nn.Linear))
    assert counted.matrix_weights == linear  # the vocabulary's projection is the table, and all of it is read
    vectors = sum(parameter.numel() for parameter in whole.parameters() if parameter.dim() == 1)
    assert counted.vector_weights == vectors
    assert counted.bytes_read(32) == 4 * (linear + vectors)
    assert counted.bytes_read(8) == linear + 4 * vectors
    assert counted.bytes_read(4) == linear // 2 + 4 * vectors

    read = _counted(read_models([("teacher", str(teacher_folder))], "stsb")[0], [8])
    in_layers = sum(m.weight.numel() for m in whole.bert.encoder.modules() if isinstance(m, nn.Linear))
    size = whole.config.hidden_size
    assert read.matrix_weights == in_layers + size * size + size  # and the pooler, and the score


def test_flops_that_are_no_parabola_are_counted_one_by_one() -> None:
    class Cubic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mT @ x if x.shape[0] % 7 else x.mT @ x @ x.mT @ x

    model = Cubic()
    counted = count(model, model, range(1, 30), lambda n: (torch.empty(n, n, device="meta"),))
    for length, flops in counted.flops.items():
        assert flops == 2 * length**3 * (1 if length % 7 else 3)


@pytest.fixture(scope="module")
def elmo() -> Counted:
    return _counted(None, [1, 7, 20])


def test_elmo_has_its_published_size(elmo: Counted) -> None:
    width, cells, projection = 2048, 4096, 512
    convolutions = sum(span * 16 * number + number for span, number in FILTERS)
    highways = 2 * (width * 2 * width + 2 * width)
    lstm = 2 * projection * 4 * cells + cells * projection
    published = CHARACTERS * 16 + convolutions + highways + width * projection + projection + 4 * (lstm + 4 * cells)
    assert published == 93_600_864
    assert elmo.encoder_parameters == published + 4 * 4 * cells  # PyTorch's second bias
    assert elmo.parameters == elmo.encoder_parameters + 2 * projection + 1

    products = convolutions_flops() + 2 * (highways - 2 * 2 * width) + 2 * width * projection + 4 * 2 * lstm
    for words, flops in elmo.flops.items():
        assert flops == words * products + 2 * 2 * projection


def convolutions_flops() -> int:
    return sum(2 * span * 16 * number * (50 - span + 1) for span, number in FILTERS)


def test_elmo_reads_words_by_their_characters() -> None:
    ids = characters_of("Two stills.", "A still")
    assert ids.shape == (1, 3 + 2 + 2 + 2, 50)  # two words and a stop, then two words, each text between marks
    assert ids[0, 0, :4].tolist() == [259, 257, 260, 261]
    assert ids[0, 1, :6].tolist() == [259, ord("T") + 1, ord("w") + 1, ord("o") + 1, 260, 261]
    assert (ids < CHARACTERS).all()
    assert characters_of("é" * 100).shape == (1, 3, 50)


def test_both_directions_of_elmo_read_all_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import potstill.bench.inference.elmo as elmo

    monkeypatch.setattr(elmo, "CELLS", 8)
    monkeypatch.setattr(elmo, "PROJECTION", 4)
    torch.manual_seed(0)
    model = ElmoShaped().eval()
    state: list[torch.Tensor] = []
    model.score.register_forward_hook(lambda module, inputs, output: state.append(inputs[0]))
    texts = [
        characters_of("one two three four"),
        characters_of("other two three four"),
        characters_of("one two three 4"),
    ]
    with torch.inference_mode():
        for text in texts:
            model(torch.from_numpy(text))
    same, first, last = (one.numpy() for one in state)
    for changed in (first, last):
        assert not np.allclose(changed[:, :4], same[:, :4])
        assert not np.allclose(changed[:, 4:], same[:, 4:])


def test_a_model_that_looks_at_values_is_counted_too() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = DebertaV2Config(vocab_size=50, max_position_embeddings=16, position_buckets=8, **sizes)
    model = Model("deberta", "", "feature-extraction", config)
    with pytest.raises(RuntimeError, match="meta"):
        model.shape()(torch.zeros(1, 4, dtype=torch.long, device="meta"))
    assert _counted(model, [4]).flops[4] > 2 * 4 * (4 * 16 * 16 + 2 * 16 * 32)


def test_a_shape_has_no_weights_and_ties_what_is_tied(make_classifier: Callable[..., Path]) -> None:
    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16)
    shape = Model("student", "", "fill-mask", config).shape()
    assert all(parameter.is_meta for parameter in shape.parameters())
    assert shape.num_parameters() == DistilBertForMaskedLM(config).num_parameters()
