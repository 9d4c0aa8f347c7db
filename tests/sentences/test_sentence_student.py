"""The student of a sentence encoder before any training."""

import copy

import numpy as np
import pytest
import torch
from families_samples import CONFIGS
from sentence_samples import TEXTS, headless, random_dense, small_encoder
from transformers import AlbertConfig, MegatronBertConfig

from potstill.errors import PotstillError
from potstill.sentences import SentenceEncoder, build_sentence_student
from potstill.student.headless import layer_prefix


def truncated(teacher: SentenceEncoder, layers: list[int]) -> SentenceEncoder:
    """The same encoder, of whose list of layers the others are taken out."""
    found = copy.deepcopy(teacher)
    prefix = layer_prefix(teacher.model)
    assert prefix is not None
    parent, _, name = prefix.rstrip(".").rpartition(".")
    kept = getattr(found.model.get_submodule(parent), name)
    setattr(found.model.get_submodule(parent), name, torch.nn.ModuleList(kept[layer] for layer in layers))
    found.model.config.num_hidden_layers = len(layers)
    return found


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_student_is_its_teacher_without_some_layers(model_type: str) -> None:
    teacher = small_encoder(model_type, dense=random_dense(24, 6), prompts={"q": "bol "}, default_prompt_name="q")
    student = build_sentence_student(teacher, layers=[0, 2])
    assert type(student.model) is type(teacher.model)
    assert student.model.config.num_hidden_layers == 2
    assert teacher.model.config.num_hidden_layers == 4
    assert student.model.config._attn_implementation == teacher.model.config._attn_implementation
    for name in ("pooling", "normalize", "max_length", "prompts", "default_prompt_name", "similarity_fn_name", "width"):
        assert getattr(student, name) == getattr(teacher, name), name
    assert not student.training
    np.testing.assert_allclose(student.encode(TEXTS), truncated(teacher, [0, 2]).encode(TEXTS), atol=1e-6)
    theirs = {tensor.data_ptr() for tensor in teacher.parameters()}
    assert not theirs & {tensor.data_ptr() for tensor in student.parameters()}


def test_an_architecture_of_no_family() -> None:
    teacher = small_encoder()
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40}
    teacher.model = headless(MegatronBertConfig(vocab_size=len(teacher.tokenizer), pad_token_id=0, **sizes))
    student = build_sentence_student(teacher, 2)
    np.testing.assert_allclose(student.encode(TEXTS), truncated(teacher, [0, 3]).encode(TEXTS), atol=1e-6)
    teacher.model.encoder.layer[3].another = torch.nn.Linear(1, 1)
    with pytest.raises(PotstillError, match=r"layer 3 of the teacher cannot be layer 1 of the student: another\."):
        build_sentence_student(teacher, 2)


def test_layers_that_are_not_told_apart() -> None:
    teacher = small_encoder()
    sizes = {"hidden_size": 24, "embedding_size": 8, "num_attention_heads": 3, "intermediate_size": 16}
    teacher.model = headless(AlbertConfig(vocab_size=90, num_hidden_layers=3, **sizes))
    with pytest.raises(PotstillError, match=r"^a model of type 'albert' has 0 lists of layers, and not one"):
        build_sentence_student(teacher)


def test_the_depth() -> None:
    teacher = small_encoder()
    assert build_sentence_student(teacher).model.config.num_hidden_layers == 2
    assert build_sentence_student(teacher, 3).model.config.num_hidden_layers == 3
    with pytest.raises(PotstillError, match="cannot fill 5 student layers"):
        build_sentence_student(teacher, 5)


def test_random_weights_are_of_the_seed_alone() -> None:
    teacher = small_encoder(dense=random_dense(24, 6))
    before = torch.get_rng_state()
    students = [build_sentence_student(teacher, initialise="random", seed=seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("model.encoder.layer.1.output.dense.weight", "dense.0.linear.weight"):
        assert torch.equal(students[0][name], students[1][name])
        assert not torch.equal(students[0][name], students[2][name])
        assert not torch.equal(students[0][name], teacher.state_dict()[name])
    with pytest.raises(PotstillError, match="it must be 'teacher' or 'random'"):
        build_sentence_student(teacher, initialise="zeros")  # type: ignore[arg-type]


def test_a_teacher_without_a_pooler_has_students_without_one(teacher_folder) -> None:  # type: ignore[no-untyped-def]
    student = build_sentence_student(teacher_folder, 1)
    assert student.model.pooler is None
    assert not [name for name in student.state_dict() if "pooler" in name]


def test_a_student_is_at_least_in_float32() -> None:
    assert build_sentence_student(small_encoder().to(torch.bfloat16)).model.dtype == torch.float32
