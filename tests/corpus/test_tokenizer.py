from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_samples import VOCABULARY
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertTokenizer

from potstill.corpus import tokenizer as room
from potstill.corpus.masking import IGNORED, Masking
from potstill.corpus.prepare import prepare
from potstill.corpus.tokenise import batched, tokenise
from potstill.corpus.tokenizer import TokenizerSpec, control_ids, load_tokenizer, placeholders
from potstill.errors import PotstillError

TEXT = "the <user> sat on <url>the mat <URL> [E1] cat copperstill [SEP] [MASK] [CLS] [PAD] [UNK] <user>"


def bert(**options: Any) -> BertTokenizer:
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(VOCABULARY)}, **options)


def extended() -> BertTokenizer:
    """With special and ordinary tokens added, of all kinds that there are."""
    tokenizer = bert(extra_special_tokens=["<url>", AddedToken("<user>", lstrip=True, normalized=False, special=True)])
    tokenizer.add_tokens(["[E1]", AddedToken("copperstill", single_word=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<URL>"]}, replace_extra_special_tokens=False)
    return tokenizer


def ids_in_corpus(tokenizer: BertTokenizer, text: str) -> list[int]:
    results = tokenise(batched([text.encode()], 1), TokenizerSpec.of(tokenizer, "it"), 0, 0.0, num_proc=1)
    return np.concatenate([tokens.train for tokens in results]).tolist()


def test_a_models_own_tokens_come_out_as_themselves_and_its_control_tokens_never(tmp_path: Path) -> None:
    tokenizer = extended()
    assert control_ids(tokenizer) == [0, 1, 2, 3, 4]
    assert set(placeholders(tokenizer).values()) == {"<url>", "<user>", "<URL>"}
    tokenizer.save_pretrained(tmp_path)
    for read in (tokenizer, load_tokenizer(str(tmp_path))):
        ids = ids_in_corpus(read, TEXT)
        assert ids.pop() == read.sep_token_id
        for token, count in (("<url>", 1), ("<user>", 2), ("<URL>", 1), ("[E1]", 1), ("copperstill", 1)):
            assert ids.count(read.convert_tokens_to_ids(token)) == count, token
        assert not set(ids) & (set(control_ids(read)) - {read.unk_token_id})
        # Around the control tokens, which are plain text here, it is what the model's tokenizer gives.
        before, after = TEXT.split(" [SEP] [MASK] [CLS] [PAD] [UNK]")
        expected = [read(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
        assert ids[: len(expected[0])] == expected[0]
        assert ids[-len(expected[1]) :] == expected[1]


def test_the_plain_text_of_a_control_token_is_what_it_was_without_placeholders() -> None:
    text = "cat [MASK] [SEP] sat"
    assert ids_in_corpus(extended(), text) == ids_in_corpus(bert(), text)


def test_a_tokenizer_that_splits_special_tokens_is_believed() -> None:
    tokenizer = extended()
    tokenizer.split_special_tokens = True
    assert placeholders(tokenizer) == {}
    ids = ids_in_corpus(tokenizer, "cat <url>")
    assert ids[:-1] == tokenizer("cat <url>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<url>") not in ids


def test_control_tokens_in_the_guise_of_ordinary_added_tokens_stay_out_of_the_text() -> None:
    tokenizer = bert()
    settings = tokenizer.backend_tokenizer.to_str().replace('"special":true', '"special":false')
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(settings)
    assert ids_in_corpus(tokenizer, "cat [MASK] [SEP]") == ids_in_corpus(bert(), "cat [MASK] [SEP]")


def test_what_a_tokenizer_puts_around_a_text_is_a_control_token_without_a_role_too(tokenizer: BertTokenizer) -> None:
    for role in ("cls_token", "sep_token"):
        other = BertTokenizer(vocab=tokenizer.get_vocab())
        setattr(other, role, None)
        assert control_ids(other) == [0, 1, 2, 3, 4]


def test_placeholders_are_counted_and_masked_as_content_is(tmp_path: Path) -> None:
    tokenizer = extended()
    (tmp_path / "a.txt").write_text("<user> cat <url>\n" * 60)
    corpus = prepare(
        [str(tmp_path / "a.txt")],
        str(tmp_path / "out"),
        tokenizer=tokenizer,  # type: ignore[arg-type]
        block_size=12,
        validation_fraction=0,
    )
    url = tokenizer.convert_tokens_to_ids("<url>")
    read = corpus.tokenizer()
    assert read.convert_tokens_to_ids("<url>") == url
    masking = Masking(torch.from_numpy(corpus.token_counts), control_ids(read), 4, seed=0, rule="uniform")
    ids = torch.stack([item["input_ids"] for item in corpus.train])
    assert corpus.token_counts[url] == (ids == url).sum() > 40
    masked = masking(ids, torch.arange(len(ids)))
    labels = set(masked.labels.flatten().tolist()) - {IGNORED}
    assert url in labels
    assert not labels & set(control_ids(read))


def test_a_tokenizer_that_panics_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*args: Any, **options: Any) -> Iterator[None]:
        raise PanicException("index out of range")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(PotstillError, match=r"holds no tokenizer that can be loaded \(index out of range\)"):
        room.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["[" * 200_000, "\0" * 100, "", "[]", '{"model": {"type": "WordPiece"}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_settings_are_one_sentence(tmp_path: Path, tokenizer: BertTokenizer, name: str, content: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    if (name, content[:2]) == ("tokenizer_config.json", '{"'):  # which says nothing of case or of special tokens
        load_tokenizer(str(tmp_path))
        return
    with pytest.raises(PotstillError, match=r"holds no tokenizer that can be loaded|is damaged: ") as raised:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(raised.value)
