from pathlib import Path

import pytest
from corpus_samples import VOCABULARY, random_documents
from transformers import BertTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(VOCABULARY)}, model_max_length=16)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(random_documents(400, seed=1)) + "\n", encoding="utf-8")
    return str(path)
