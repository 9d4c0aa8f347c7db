import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from potstill.errors import PotstillError
from potstill.student import build_student, family_of
from potstill.student.bert import Bert

MakeBert = Callable[..., BertForMaskedLM]
EXACT = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.mark.parametrize(("dtype", "tolerance"), EXACT)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"hidden_act": "gelu_new", "vocab_size": 104, "intermediate_size": 7},
        {"hidden_act": "prelu", "pad_token_id": None},  # an activation with weights of its own
        {"num_hidden_layers": 1, "type_vocab_size": 1, "pad_token_id": 100},
    ],
    ids=str,
)
def test_a_student_of_all_layers_computes_the_teachers_logits(
    make_bert: MakeBert, input_ids: torch.Tensor, options: dict[str, object], dtype: torch.dtype, tolerance: float
) -> None:
    teacher = make_bert(dtype=dtype, **options)
    student = build_student(teacher, layers=range(teacher.config.num_hidden_layers))
    assert type(student) is DistilBertForMaskedLM
    assert student.dtype == dtype
    torch.testing.assert_close(student(input_ids).logits, teacher(input_ids).logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_embedding_outputs_are_equal_for_one_segment(
    make_bert: MakeBert, input_ids: torch.Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    teacher = make_bert(dtype=dtype)
    student = build_student(teacher)
    expected = family_of(teacher).embed(teacher, input_ids)
    torch.testing.assert_close(family_of(student).embed(student, input_ids), expected, rtol=0, atol=tolerance)

    plain = build_student(teacher, fold_token_types=False)
    positions = plain.distilbert.embeddings.position_embeddings.weight
    assert torch.equal(positions, teacher.bert.embeddings.position_embeddings.weight)
    assert not torch.allclose(family_of(plain).embed(plain, input_ids), expected, atol=1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_written_and_none_is_shared_with_the_teacher(make_bert: MakeBert, tied: bool) -> None:
    teacher = make_bert(tie_word_embeddings=tied)
    before = copy.deepcopy(teacher.state_dict())
    student = DistilBertForMaskedLM(Bert().student_config(teacher.config, [0, 1]))
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.fill_(float("nan"))
    Bert().copy_weights(teacher, student, [1, 3], fold_token_types=True)
    for name, tensor in student.state_dict().items():
        assert tensor.isfinite().all(), name
        tensor.zero_()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_each_layer_is_the_chosen_one(make_bert: MakeBert) -> None:
    teacher = make_bert()
    student = build_student(teacher, layers="3,0,3")
    for layer, source in zip(student.distilbert.transformer.layer, (3, 0, 3), strict=True):
        original = teacher.bert.encoder.layer[source]
        assert torch.equal(layer.attention.k_lin.weight, original.attention.self.key.weight)
        assert torch.equal(layer.sa_layer_norm.bias, original.attention.output.LayerNorm.bias)
        assert torch.equal(layer.ffn.lin2.bias, original.output.dense.bias)
        assert torch.equal(layer.output_layer_norm.weight, original.output.LayerNorm.weight)


def test_the_config_says_what_the_teachers_says(make_bert: MakeBert) -> None:
    teacher = make_bert(
        hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.15,
        initializer_range=0.03,
        pad_token_id=7,
        hidden_act="relu",
        tie_word_embeddings=False,
    )
    config = build_student(teacher, num_hidden_layers=3).config
    assert (config.vocab_size, config.dim, config.hidden_dim, config.n_heads) == (101, 24, 40, 3)
    assert (config.n_layers, config.max_position_embeddings, config.pad_token_id) == (3, 19, 7)
    assert (config.dropout, config.attention_dropout, config.initializer_range) == (0.05, 0.15, 0.03)
    assert (config.activation, config.tie_word_embeddings, config.sinusoidal_pos_embds) == ("relu", False, False)


@pytest.mark.parametrize(
    ("teacher_layers", "num_hidden_layers", "layers", "expected"),
    [(4, None, "alternate", 2), (5, None, "last", 2), (1, None, "alternate", 1), (4, 3, "first", 3), (4, None, "0", 1)],
)
def test_depth(
    make_bert: MakeBert, teacher_layers: int, num_hidden_layers: int | None, layers: str, expected: int
) -> None:
    student = build_student(make_bert(num_hidden_layers=teacher_layers), num_hidden_layers, layers)
    assert student.config.num_hidden_layers == len(student.distilbert.transformer.layer) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_alone_loads_the_saved_student(
    make_bert: MakeBert, input_ids: torch.Tensor, tmp_path: Path, tied: bool
) -> None:
    student = build_student(make_bert(tie_word_embeddings=tied))
    assert (student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight) == tied
    student.save_pretrained(tmp_path)
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is DistilBertForMaskedLM
    assert not any(report.values())
    assert torch.equal(loaded(input_ids).logits, student(input_ids).logits)
    for name in (tmp_path, str(tmp_path)):
        assert torch.equal(build_student(name, layers=[0, 1])(input_ids).logits, student(input_ids).logits)


def test_a_distilbert_is_a_teacher_too(make_bert: MakeBert, input_ids: torch.Tensor) -> None:
    teacher = build_student(make_bert(), 4)
    assert torch.equal(build_student(teacher, 4)(input_ids).logits, teacher(input_ids).logits)
    student = build_student(teacher, layers=[0, 3])
    states = student.state_dict()
    for name, tensor in teacher.state_dict().items():
        if ".layer.3." in name:
            assert torch.equal(states[name.replace(".layer.3.", ".layer.1.")], tensor)
    assert (teacher.config.n_layers, student.config.n_layers) == (4, 2)


def test_a_half_precision_teacher_gives_a_student_that_can_be_trained(make_bert: MakeBert) -> None:
    teacher = make_bert(dtype=torch.bfloat16)
    student = build_student(teacher)
    assert student.dtype == torch.float32
    embeddings = teacher.bert.embeddings
    expected = embeddings.position_embeddings.weight.float() + embeddings.token_type_embeddings.weight[0].float()
    assert torch.equal(student.distilbert.embeddings.position_embeddings.weight, expected)


def test_parameters_of_the_published_shape() -> None:
    with torch.device("meta"):
        student = DistilBertForMaskedLM(Bert().student_config(BertConfig(), [0, 2, 4, 7, 9, 11]))
    assert sum(parameter.numel() for parameter in student.parameters()) == 66_985_530


def test_random_initialisation_depends_on_the_seed_alone(make_bert: MakeBert) -> None:
    teacher = make_bert(initializer_range=0.05)
    student = build_student(teacher, initialise="random", seed=1)
    torch.manual_seed(99)
    again = build_student(make_bert(initializer_range=0.05, seed=5), initialise="random", seed=1)
    other = build_student(teacher, initialise="random", seed=2)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    words = student.distilbert.embeddings.word_embeddings.weight
    assert not torch.equal(words, other.distilbert.embeddings.word_embeddings.weight)
    assert words.std().item() == pytest.approx(0.05, rel=0.1)
    assert not student.vocab_projector.bias.any()
    assert student.vocab_projector.weight is words


@pytest.mark.parametrize("initialise", ["teacher", "random"])
def test_the_callers_random_state_is_untouched(make_bert: MakeBert, initialise: str) -> None:
    teacher = make_bert()
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    build_student(teacher, initialise=initialise, seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_a_layer_norm_eps_that_distilbert_cannot_have_is_said_aloud(make_bert: MakeBert) -> None:
    with pytest.warns(UserWarning, match="layer_norm_eps is 1e-05"):
        build_student(make_bert(layer_norm_eps=1e-5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_student(make_bert())


def test_teachers_that_cannot_be_one(make_bert: MakeBert) -> None:
    with pytest.raises(PotstillError, match="is a decoder"):
        build_student(make_bert(is_decoder=True))
    with pytest.raises(PotstillError, match="'relative_key' positions"):
        build_student(make_bert(position_embedding_type="relative_key"))
    with pytest.raises(PotstillError, match="BertForSequenceClassification, which has no language-model head"):
        build_student(BertForSequenceClassification(make_bert().config))


def test_options_that_cannot_be(make_bert: MakeBert) -> None:
    teacher = make_bert()
    with pytest.raises(PotstillError, match="it must be 'teacher' or 'random'"):
        build_student(teacher, initialise="zeros")
    with pytest.raises(PotstillError, match="cannot fill 5 student layers"):
        build_student(teacher, 5)
    with pytest.raises(PotstillError, match="3 teacher layers are listed"):
        build_student(teacher, 2, "0,1,2")
    with pytest.raises(PotstillError, match="teacher layer 4 does not exist"):
        build_student(teacher, layers=[4])


def test_a_distilbert_with_sinusoidal_positions_is_copied_as_it_is(input_ids: torch.Tensor) -> None:
    sizes = {"vocab_size": 101, "dim": 24, "n_heads": 3, "hidden_dim": 40, "n_layers": 2, "max_position_embeddings": 19}
    config = DistilBertConfig(**sizes, sinusoidal_pos_embds=True)
    teacher = DistilBertForMaskedLM(config).eval()
    assert torch.equal(build_student(teacher, 2)(input_ids).logits, teacher(input_ids).logits)


def test_dropout_of_the_student_in_training_is_not_that_of_its_config() -> None:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    teacher = BertForMaskedLM(BertConfig(vocab_size=40, hidden_dropout_prob=0.2, **shape))
    for student, width in (
        (build_student(teacher, dropout=0.0), 16),
        (build_student(teacher, hidden_size=8, dropout=0.0), 8),
    ):
        assert {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
        assert (student.config.dropout, student.config.attention_dropout) == (0.2, 0.1)
        assert student.config.dim == width
    assert {module.p for module in build_student(teacher).modules() if isinstance(module, torch.nn.Dropout)} == {
        0.1,
        0.2,
    }
    with pytest.raises(PotstillError, match="dropout"):
        build_student(teacher, dropout=1.0)
