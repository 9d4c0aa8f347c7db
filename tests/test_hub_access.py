"""Names on the hub with a network that is slow, comes back, or is not there."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from hubs import Network

from potstill.cli import main
from potstill.corpus import load_tokenizer
from potstill.hub_access import WAITS
from potstill.student import load_masked_lm

pytestmark = pytest.mark.usefixtures("signals_restored")

NAME = "somebody/something"
VERBS = {
    "teacher": ["distill", "--teacher", NAME, "--corpus", "{corpus}", "--use_cpu"],
    "tokenizer": ["prepare", "--text", "{text}", "--tokenizer", NAME],
    "text": ["prepare", "--text", NAME, "--tokenizer", "{teacher}"],
    "model": ["finetune", "--model", NAME, "--task", "sst2", "--use_cpu"],
    "train_data": ["finetune", "--model", "{teacher}", "--task", "classification", "--train_data", NAME, "--use_cpu"],
    "squad": ["finetune", "--model", "{teacher}", "--task", "squad", "--use_cpu"],
    "glue": ["finetune", "--model", "{teacher}", "--task", "sst2", "--use_cpu"],
    "models": ["evaluate", "--models", f"a={NAME}", "--suite", "glue:cola"],
    "bench": ["bench", "inference", "--models", f"a={NAME}"],
}


@pytest.fixture(params=VERBS)
def words(
    request: pytest.FixtureRequest, teacher_folder: Path, corpus_folder: Path, text_path: Path, tmp_path: Path
) -> list[str]:
    """A command that names something on the hub."""
    places = {"corpus": corpus_folder, "text": text_path, "teacher": teacher_folder}
    words = [word.format(**places) for word in VERBS[request.param]]
    return words if words[0] == "bench" else [*words, "--output_dir", str(tmp_path / "out")]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_without_a_network_the_error_comes_soon(
    network: Network, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.cut = True
    error = error_of(words, capsys)
    assert "it is not in the cache of this machine, and there is no connection to https://huggingface.co: " in error
    assert "[Errno -2] Name or service not known" in error
    assert sum(network.waits) == sum(WAITS) <= 5, network.waits
    assert network.requests[:3] == ["HEAD /"] * 3
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not (tmp_path / "out").exists()


def test_in_offline_mode_nothing_is_asked_for(
    network: Network, words: list[str], no_hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "it is not in the cache of this machine, and HF_HUB_OFFLINE is set" in error_of(words, capsys)
    assert not network.requests
    assert not network.waits


@pytest.mark.parametrize("trouble", [{}, {"lost": 3}, {"failed": 2}], ids=str)
def test_a_slow_network_has_its_time(network: Network, trouble: dict[str, int], teacher_folder: Path) -> None:
    network.models[NAME] = teacher_folder
    vars(network).update(trouble)
    assert load_tokenizer(NAME).get_vocab() == load_tokenizer(str(teacher_folder)).get_vocab()
    assert load_masked_lm(NAME).num_parameters() == load_masked_lm(teacher_folder).num_parameters()
    assert network.requests.count("HEAD /") == 1 + trouble.get("failed", 0)


def test_what_is_in_the_cache_needs_no_network(
    network: Network, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.models[NAME] = teacher_folder
    load_tokenizer(NAME).save_pretrained(tmp_path / "before")
    load_masked_lm(NAME)
    network.cut = True
    network.requests.clear()
    network.waits.clear()
    monkeypatch.setattr("potstill.hub_access._reached", {})
    load_tokenizer(NAME).save_pretrained(tmp_path / "after")
    load_masked_lm(NAME)
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()
    assert set(network.requests) == {"HEAD /"}
    assert sum(network.waits) == sum(WAITS)
