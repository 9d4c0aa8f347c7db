"""A model folder from a stranger: nothing in it is run, and what is no model is refused in bounded memory and time."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bounded import refused, sparse
from samples import written_text

from potstill.corpus import prepare
from potstill.corpus.tokenizer import load_tokenizer
from potstill.finetuning.models import load_config
from potstill.student import load_masked_lm

Change = Callable[[Path], object]


class Boom:
    """A pickle of it makes a file `ran` beside the model when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.fixture
def model(teacher_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_folder, tmp_path / "model"))


def edited(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def header(tensors: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def replaced(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


CONFIGS: dict[str, Any] = {
    f"{name} of 2**40": lambda folder, name=name: edited(folder / "config.json", **{name: 2**40})
    for name in (
        *("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "intermediate_size"),
        *("num_attention_heads", "type_vocab_size", "num_labels"),
    )
} | {
    "a width that is text": lambda folder: edited(folder / "config.json", hidden_size="x" * 100_000),
    "nested": lambda folder: replaced(folder, "config.json", b'{"a":' * 200_000),
    "10 GB": lambda folder: sparse(folder / "config.json"),
}
WEIGHTS: dict[str, Any] = {
    "header of 2**63 bytes": header(b"{}", length=2**63),
    "header beyond the file": header(b"{}", length=90_000_000),
    "offsets beyond the file": header({"a": tensor([4], 0, 2**40)}, bytes(16)),
    "overlapping tensors": header({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)),
    "a shape of 2**80": header({"a": tensor([2**40, 2**40], 0, 16)}, bytes(16)),
    "an empty tensor with 2**50 rows": header({"a.weight": tensor([2**50, 0], 0, 0)}),
    "nested": header(b'{"a":' + b"[" * 1_000_000),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_hostile_configs(model: Path, change: Change) -> None:
    change(model)
    assert str(model) in refused(lambda: load_masked_lm(model))
    assert str(model) in refused(lambda: load_config(str(model)))


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"pad_token_id": 2**40}])
def test_configs_of_which_no_model_can_be_built(model: Path, change: dict[str, int]) -> None:
    edited(model / "config.json", **change)
    assert "cannot be loaded" in refused(lambda: load_masked_lm(model))


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_lying_weights(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert str(model) in refused(lambda: load_masked_lm(model))


def test_a_pickle_is_not_read_whatever_its_name(model: Path) -> None:
    boom = pickle.dumps(Boom(model / "ran"))
    (model / "model.safetensors").write_bytes(boom)
    assert "damaged" in refused(lambda: load_masked_lm(model))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "only pickled weights" in refused(lambda: load_masked_lm(model))
    assert not (model / "ran").exists()


def test_code_beside_a_tokenizer_is_not_run(model: Path) -> None:
    (model / "code.py").write_text(f"import os\nos.mkdir({str(model / 'ran')!r})\nclass T: ...\n")
    edited(model / "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["code.T", "code.T"]})
    load_tokenizer(str(model))  # the tokenizer.json is used without its code
    assert not (model / "ran").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_small_file_of_10_gb(model: Path, name: str) -> None:
    sparse(model / name)
    assert f"{name} is larger than 128 MiB" in refused(lambda: load_tokenizer(str(model)))
    assert f"{name} is larger than 128 MiB" in refused(lambda: load_masked_lm(model))


def test_a_pipe_in_a_model_is_not_waited_for(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    assert "tokenizer.json is a pipe, not a file" in refused(lambda: load_tokenizer(str(model)))


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd"])
def test_links_out_of_a_model(model: Path, target: str) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to(target)
    told = refused(lambda: load_tokenizer(str(model)))
    assert re.search(r"tokenizer\.json is (a device, not a file|damaged)", told)


def test_too_many_labels_do_not_fill_the_memory_of_who_loads_the_tokenizer(model: Path) -> None:
    edited(model / "config.json", num_labels=2**40)
    assert "num_labels of more than 1,048,576" in refused(lambda: load_tokenizer(str(model)))


def test_a_token_with_a_huge_number(model: Path) -> None:
    settings = json.loads((model / "tokenizer.json").read_text())
    settings["model"]["vocab"]["huge"] = 2**32 - 2
    (model / "tokenizer.json").write_text(json.dumps(settings))
    assert "a token with the number 4,294,967,294" in refused(lambda: load_tokenizer(str(model)))


def test_a_normaliser_that_doubles_text_forty_times(model: Path, tmp_path: Path) -> None:
    settings = json.loads((model / "tokenizer.json").read_text())
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    settings["normalizer"] = {"type": "Sequence", "normalizers": [double] * 40}
    (model / "tokenizer.json").write_text(json.dumps(settings))
    edited(model / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (tmp_path / "a.txt").write_text(written_text(40, seed=0) + "\naaaa\n")
    options = {"tokenizer": str(model), "block_size": 16, "num_proc": 1}
    told = refused(lambda: prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), **options))
    assert "makes text more than 1,000 times as long" in told
    assert not (tmp_path / "out").exists()
