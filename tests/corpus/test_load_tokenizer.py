"""Tokenizers whose files are damaged: the file is named."""

from pathlib import Path

import pytest
from transformers import BertTokenizer

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a":' * 100_000, "its values are nested too deeply"),
        ('{"a": 1', "it is not JSON"),
        ("\0\0\0\0", "it holds NUL bytes"),
        ("[1]", "it holds no JSON object"),
    ],
)
def test_a_damaged_file_is_named(
    tiny_tokenizer: BertTokenizer, tmp_path: Path, file: str, content: str, told: str
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(
        PotstillError, match=f"The (tokenizer|model's) file {tmp_path / file} is damaged: {told}"
    ) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_whole_files_that_are_no_tokenizer(tiny_tokenizer: BertTokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PotstillError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path))
