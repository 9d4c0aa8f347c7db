"""What tests of the bench share."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inference_samples
import pytest
import torch
from inference_samples import SIZES, Local
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from potstill.bench.inference import processes
from potstill.training import part_clock


@pytest.fixture(scope="session")
def make_classifier(tiny_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random BERT that tells labels apart, with its tokenizer; options are those of its config."""

    def make(layers: int = 2, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("classifier")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = BertConfig(vocab_size=len(tiny_tokenizer), num_hidden_layers=layers, **(SIZES | options))
            BertForSequenceClassification(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine's limits with next to nothing."""
    inference_samples.small_machine(monkeypatch)


@pytest.fixture
def undisturbed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time steps by what this process computes.

    A round ends just after its last part. If another process gets the processor in between, parts and round differ.
    """
    monkeypatch.setattr(part_clock, "time", SimpleNamespace(perf_counter=time.process_time))


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, small_machine: None) -> Iterator[type[Local]]:
    """Run forms in this process."""
    Local.calls = []
    monkeypatch.setattr(processes, "Process", Local)
    yield Local
    Local.calls = []
