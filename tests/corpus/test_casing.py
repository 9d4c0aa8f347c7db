import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from potstill.corpus.tokenizer import load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
UNCASED = [*SPECIAL, *LETTERS, "strasse", "uber", "haus"]
ACCENTED = [*UNCASED, "über", "ü", "##ü"]
CASED = [*ACCENTED, "Haus", "Über", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
TEXT = "Haus über haus"


def folder_of(tmp_path: Path, vocabulary: list[str], config: dict[str, object] | None) -> str:
    """A model folder as it was before tokenizer.json: a list of words and, at times, the settings."""
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(vocabulary)}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize("config", [None, {}, {"model_max_length": 512}])
@pytest.mark.parametrize(
    ("vocabulary", "tokens", "said"),
    [
        (CASED, ["Haus", "über", "haus"], "its vocabulary has capitals: case and accents are kept"),
        (ACCENTED, ["haus", "über", "haus"], "its vocabulary has some: they are kept"),
        (UNCASED, ["haus", "uber", "haus"], None),
    ],
    ids=["cased", "accented", "uncased"],
)
def test_where_nothing_is_stated_the_vocabulary_decides(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    vocabulary: list[str],
    tokens: list[str],
    said: str | None,
    config: dict[str, object] | None,
) -> None:
    folder = folder_of(tmp_path, vocabulary, config)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.tokenize(TEXT) == tokens
    assert len(caplog.messages) == (said is not None)
    if said:
        assert said in caplog.text
        assert folder in caplog.text
    load_tokenizer(folder)
    assert len(caplog.messages) == (said is not None)  # said once
    # What was decided is stated from then on.
    tokenizer.save_pretrained(tmp_path / "saved")
    caplog.clear()
    assert load_tokenizer(str(tmp_path / "saved")).tokenize(TEXT) == tokens
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("options", "vocabulary", "tokens"),
    [
        ({"do_lower_case": False}, CASED, ["Haus", "über", "haus"]),
        ({"strip_accents": False}, ACCENTED, ["haus", "über", "haus"]),
        ({"do_lower_case": False}, UNCASED, ["[UNK]", "[UNK]", "haus"]),
    ],
    ids=["cased", "accented", "uncased"],
)
def test_tokenizer_json_is_believed_where_the_settings_are_missing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, bool],
    vocabulary: list[str],
    tokens: list[str],
) -> None:
    vocab = {entry: number for number, entry in enumerate(vocabulary)}
    BertTokenizer(vocab=vocab, **options).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert load_tokenizer(str(tmp_path)).tokenize(TEXT) == tokens
    ((option, value),) = options.items()
    assert f"its tokenizer.json decides ({option} {json.dumps(value)})" in caplog.messages[0]


@pytest.mark.parametrize(
    ("options", "vocabulary", "tokens", "said"),
    [
        (
            {"do_lower_case": True},
            CASED,
            ["haus", "uber", "haus"],
            "lower-cases, so it never uses the capitals in its vocabulary",
        ),
        (
            {"do_lower_case": True, "strip_accents": True},
            ACCENTED,
            ["haus", "uber", "haus"],
            "strips accents, so it never uses the accents in its vocabulary",
        ),
        (
            {"do_lower_case": False},
            UNCASED,
            ["[UNK]", "[UNK]", "haus"],
            "keeps case, but its vocabulary has no capitals",
        ),
    ],
    ids=["cased", "accented", "uncased"],
)
def test_what_is_stated_stands_and_a_contradiction_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, bool],
    vocabulary: list[str],
    tokens: list[str],
    said: str,
) -> None:
    assert load_tokenizer(folder_of(tmp_path, vocabulary, options)).tokenize(TEXT) == tokens
    (message,) = caplog.messages
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("lowercase", [True, False])
def test_other_normalisers_are_looked_at_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lowercase: bool
) -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "Haus": 3, "haus": 4}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).tokenize("Haus") == ["haus" if lowercase else "Haus"]
    assert any("lower-cases, so it never" in message for message in caplog.messages) == lowercase


def test_an_odd_capital_does_not_make_a_vocabulary_cased(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [f"w{number}" for number in range(200)]
    tokenizer = load_tokenizer(folder_of(tmp_path, [*UNCASED, *words, "T", "[ENTITY]", "<URL>"], None))
    assert tokenizer.tokenize("Haus") == ["haus"]
    assert caplog.messages == []
