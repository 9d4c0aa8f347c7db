"""A tiny sentence encoder, and blocks of whole texts for it."""

from pathlib import Path

import pytest
from families_samples import LENGTH
from samples import written_text
from sentence_samples import small_encoder

from potstill.corpus import prepare


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4 layers, 24 wide, with dropout, that reads up to 19 tokens; mean pooling, normalised."""
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    small_encoder().save(folder)
    return folder


@pytest.fixture(scope="session")
def texts_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of a line each, from one word on."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = written_text(150, seed=21).splitlines()
    path.write_text("\n".join(" ".join(line.split()[: 1 + number % 17]) for number, line in enumerate(lines)) + "\n")
    return path


@pytest.fixture(scope="session")
def texts_corpus(encoder_folder: Path, texts_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts_corpus") / "rows"
    corpus = prepare(
        [str(texts_path)], str(folder), str(encoder_folder), LENGTH, validation_fraction=0.2, num_proc=1, unit="texts"
    )
    assert len(corpus.train) >= 40, len(corpus.train)
    assert len(corpus.validation) >= 6, len(corpus.validation)
    return folder
