"""Libraries in Rust that panic."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.panics import PanicError, panics_as_errors

DAMAGED = '"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"}'
"""A table that is cut short, as of a SentencePiece tokenizer: tokenizers panics where it reads this."""


def damaged() -> str:
    text = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]")).to_str()
    assert '"normalizer":null' in text
    return text.replace('"normalizer":null', DAMAGED)


def test_a_panic_is_an_error_without_a_backtrace(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PanicError, match="Cannot parse precompiled_charsmap"), panics_as_errors():
        Tokenizer.from_str(damaged())
    assert capfd.readouterr().err == ""


def test_other_errors_and_output_pass(capfd: pytest.CaptureFixture[str]) -> None:
    @panics_as_errors()
    def warn_and_fail() -> None:
        os.write(2, b"a warning\n")
        raise KeyError

    with pytest.raises(KeyError):
        warn_and_fail()
    assert capfd.readouterr().err == "a warning\n"
    with panics_as_errors():
        os.write(2, b"x" * 200_000)
    assert capfd.readouterr().err == "x" * 200_000


def test_a_tokenizer_on_which_the_library_panics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}))).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(damaged())
    with pytest.raises(PotstillError, match=r"holds no tokenizer that can be loaded \(Precompiled"):
        load_tokenizer(str(tmp_path))
    assert capfd.readouterr().err == ""
