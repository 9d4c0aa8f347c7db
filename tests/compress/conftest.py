"""A tiny task model with its task, and what `prune` makes of it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples import VOCABULARY
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from potstill.cli import main

WORDS = [token for token in VOCABULARY if token.isalpha()]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _no_surprises(signals_restored: None) -> None:
    """The handler of SIGTERM is put back that the command line replaces."""


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(0)
    (folder / "SST-2").mkdir()
    for split, count in (("train", 21), ("dev", 9)):
        rows = [f"{' '.join(rng.choices(WORDS, k=rng.randint(1, 20)))}\t{n % 2}" for n in range(count)]
        (folder / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def task_model(tiny_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 3 layers with 4 heads and 24 neurons each, with a head of the labels of SST-2; all of it random."""
    names = ("negative", "positive")
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=32,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        model = BertForSequenceClassification(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    folder = tmp_path_factory.mktemp("task") / "model"
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


Run = Callable[..., int]


@pytest.fixture(scope="session")
def prune_with(task_model: Path, glue: Path) -> Run:
    """Run the verb as the command line does, and return the exit status."""

    def run(**options: object) -> int:
        given = {"model": task_model, "task": "sst2", "task_data": glue, "use_cpu": True, "timed_rows": 2} | options
        return main(["prune", *(f"--{name}={value}" for name, value in given.items() if value is not None)])

    return run


@pytest.fixture(scope="session")
def without_heads(prune_with: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without 5 of its 12 heads and 9 of its 72 neurons."""
    folder = tmp_path_factory.mktemp("pruned") / "heads"
    assert prune_with(heads=5, neurons=9, steps=2, output_dir=folder) == 0
    return folder


@pytest.fixture(scope="session")
def without_neurons(prune_with: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a quarter of the neurons left."""
    folder = tmp_path_factory.mktemp("pruned") / "neurons"
    assert prune_with(neurons=0.75, steps=1, output_dir=folder) == 0
    return folder
