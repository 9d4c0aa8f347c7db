"""Embeddings of another width than the student's hidden states, by a Dense module that is a part of the student."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_samples import random_dense, small_encoder
from test_sentence_training import options

from potstill import PotstillError, distill
from potstill.sentences import SentenceEncoder, build_sentence_student
from potstill.sentences.embedding_size import RIDGE, add_dense
from potstill.sentences.trainer import default_losses


def some_ids(texts: int = 90, length: int = 7) -> torch.Tensor:
    return torch.randint(5, 40, (texts, length))


@pytest.mark.parametrize(("hidden_size", "size"), [(16, 24), (None, 5)])
def test_the_module_starts_as_the_closest_map(hidden_size: int | None, size: int) -> None:
    teacher = small_encoder()
    ids = some_ids()
    student = build_sentence_student(teacher, 2, hidden_size=hidden_size, texts=ids[:8])
    with torch.no_grad():
        inputs, targets = (one(ids, torch.ones_like(ids)).double().numpy() for one in (student, teacher))
    add_dense(student, teacher, size, ids)

    if size < 24:  # principal components by the eigenvectors of the second moments
        values, vectors = np.linalg.eigh(targets.T @ targets)
        targets = targets @ vectors[:, np.argsort(-values)[:size]]
    penalty = np.sqrt(RIDGE * np.square(inputs).sum(0).mean()) * np.eye(inputs.shape[1])
    padded = np.concatenate([targets, np.zeros((len(penalty), size))])
    expected = np.linalg.lstsq(np.concatenate([inputs, penalty]), padded, rcond=None)[0]
    found = student.dense[0].linear.weight.detach().double().numpy().T
    # The sign of a principal component is arbitrary.
    signs = np.sign((found * expected).sum(0)) if size < 24 else 1
    np.testing.assert_allclose(found, expected * signs, atol=2e-5)
    assert student.width == size


def test_a_narrower_student_has_the_embeddings_of_its_teachers_width(
    encoder_folder: Path, texts_corpus: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    given = {"hidden_size": 16, "embedding_size": 24, "max_steps": 12, "learning_rate": 3e-3}
    folder = distill(options(encoder_folder, texts_corpus, tmp_path / "student", **given))
    student = SentenceEncoder.load(folder)
    assert (student.model.config.hidden_size, student.width, len(student.dense)) == (16, 24, 1)
    assert "embedding_cosine" in (folder / "recipe.yaml").read_text()
    texts = ["a word", "some other words"]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(student.encode(texts), theirs, atol=1e-5)


def test_the_losses_follow_the_widths() -> None:
    teacher = small_encoder()
    for hidden_size, size, names in (
        (None, None, {"embedding_cosine", "hidden_cosine"}),
        (16, None, {"similarities", "hidden_mse"}),
        (16, 24, {"embedding_cosine", "hidden_mse"}),
        (None, 6, {"similarities", "hidden_cosine"}),
    ):
        student = build_sentence_student(teacher, 2, hidden_size=hidden_size, texts=some_ids(8))
        if size is not None:
            add_dense(student, teacher, size, None)
        assert set(default_losses(teacher, student)) == names


def test_no_module_where_the_width_is_right_already() -> None:
    teacher = small_encoder()
    student = build_sentence_student(teacher, 2)
    add_dense(student, teacher, 24, some_ids())
    assert not len(student.dense)


def test_what_cannot_be_is_told(texts_corpus: Path, tmp_path: Path) -> None:
    teacher = small_encoder()
    with pytest.raises(PotstillError, match="--embedding_size is 25, but the teacher's embeddings are 24 wide"):
        add_dense(build_sentence_student(teacher, 2), teacher, 25, None)
    with_dense = small_encoder(dense=random_dense(24, 6))
    with pytest.raises(PotstillError, match="the teacher has one already"):
        add_dense(build_sentence_student(with_dense, 2), with_dense, 5, None)
    teacher.save(tmp_path / "teacher")
    given = {"max_steps": 1, "max_size": "30kB", "embedding_size": 6}
    with pytest.raises(PotstillError, match="--max_size does not count the Dense module"):
        distill(options(tmp_path / "teacher", texts_corpus, tmp_path / "student", **given))
