"""Random blocks are a corpus like any other."""

from pathlib import Path

import numpy as np
import pytest

from potstill import PotstillError
from potstill.bench.synthetic import random_corpus
from potstill.student.wordpiece import WordPiece


def test_blocks(tmp_path: Path) -> None:
    tokenizer = WordPiece().meaningless(200, 16)
    corpus = random_corpus(tmp_path / "blocks", 50, 16, tokenizer)
    ids = corpus.train.__getitems__(list(range(50)))["input_ids"].numpy()
    assert ids.shape == (50, 16)
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert (ids[:, -1] == tokenizer.sep_token_id).all()
    content = ids[:, 1:-1]
    assert not np.isin(content, tokenizer.all_special_ids).any()
    assert content.max() < 200
    assert np.array_equal(corpus.token_counts, np.bincount(content.ravel(), minlength=200))
    assert corpus.token_counts[5] > 10 * corpus.token_counts[100:].max() / 2  # the most frequent word is much so
    assert len(corpus.validation) == 0
    assert len(corpus.tokenizer()) == 200
    corpus.check_tokenizer(corpus.tokenizer(), "its own")
    again = random_corpus(tmp_path / "again", 50, 16, tokenizer)
    assert (again.train.path).read_bytes() == corpus.train.path.read_bytes()


def test_many_blocks(tmp_path: Path) -> None:
    corpus = random_corpus(tmp_path / "blocks", 5000, 512, WordPiece().meaningless(30522, 512))
    assert len(corpus.train) == 5000
    assert corpus.manifest.splits["train"].dropped_tokens == 0


@pytest.mark.parametrize(("vocab_size", "block_size"), [(5, 16), (200, 2)])
def test_no_room(tmp_path: Path, vocab_size: int, block_size: int) -> None:
    with pytest.raises(PotstillError, match="--vocab_size" if vocab_size == 5 else "--block_size"):
        random_corpus(tmp_path / "blocks", 4, block_size, WordPiece().meaningless(vocab_size, block_size))
