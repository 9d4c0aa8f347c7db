"""The verb `bench train` on a sentence encoder, and random texts for it."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import written_text
from sentence_samples import random_dense, small_encoder

from potstill.bench import flops
from potstill.bench.synthetic import random_corpus
from potstill.cli import main
from potstill.corpus import prepare
from potstill.student.wordpiece import WordPiece
from potstill.training.part_clock import PARTS

QUICK = ["--bench_steps", "2", "--bench_warmup", "1", "--use_cpu", "--per_device_train_batch_size", "2"]
QUICK += ["--dataloader_num_workers", "0"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "teacher"
    small_encoder(dense=random_dense(24, 6)).save(folder)
    return folder


@pytest.fixture
def bench(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    teacher: Path,
    signals_restored: None,
    no_hub: None,
    undisturbed_clock: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, Any, str]]:
    """Run the verb; return its status, what it wrote and what it printed."""
    monkeypatch.setitem(flops.MATRIX_SIZE, "cpu", 64)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(*options: object) -> tuple[int, Any, str]:
        file = tmp_path / "bench.json"
        given = ["--teacher", str(teacher), *QUICK, "--json", str(file), *map(str, options)]
        status = main(["bench", "train", *given])
        printed = capsys.readouterr()
        assert not list((tmp_path / "temporary").iterdir())
        return status, json.loads(file.read_text()) if file.is_file() else None, printed.out + printed.err

    return run


def test_random_texts(bench: Callable[..., tuple[int, Any, str]]) -> None:
    status, measured, printed = bench("--num_hidden_layers", 1)
    assert status == 0, printed
    speed = measured["speed"]
    assert (measured["block_size"], speed["batch_size"], measured["measured_steps"]) == (19, 2, 2)  # the encoder's 19
    assert (measured["model"]["num_hidden_layers"], measured["teacher"]["num_hidden_layers"]) == (1, 4)
    assert measured["objective"].keys() == {"embedding_cosine", "hidden_cosine"}
    assert speed["tokens_per_second"] == pytest.approx(2 * 19 / speed["ms_per_step"] * 1000)
    assert 0 <= measured["padding"] < 0.5
    text = speed["tokens_per_second"] * (1 - measured["padding"])
    assert measured["text_tokens_per_second"] == pytest.approx(text)
    assert tuple(speed["ms_per_step_by_part"]) == PARTS
    for part in ("teacher", "student", "losses", "backward", "optimiser"):
        assert speed["ms_per_step_by_part"][part] > 0
    assert sum(speed["ms_per_step_by_part"].values()) == pytest.approx(speed["ms_per_step"], rel=0.05)
    counts = measured["flops_per_token"]
    # A layer of 24: four products with 24 × 24 and two with 24 × 40; the attention sees a text.
    inside = (counts["student_forward"] - 2 * (4 * 24 * 24 + 2 * 24 * 40)) / (4 * 24)
    assert 3 <= inside <= 19
    assert counts["teacher_forward"] == pytest.approx(4 * counts["student_forward"])
    assert measured["model_flops_per_second"] == pytest.approx(counts["step"] * text)
    assert speed["peak_memory_bytes"] > 2**20
    assert f"without padding{text:>21,.0f}" in printed
    assert "texts in each 19" in printed


def test_a_prepared_corpus_and_a_budget(
    bench: Callable[..., tuple[int, Any, str]], teacher: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    lines = written_text(60, seed=3).splitlines()
    text.write_text("\n".join(" ".join(line.split()[: 1 + number % 9]) for number, line in enumerate(lines)) + "\n")
    corpus = prepare(
        [str(text)], str(tmp_path / "corpus"), str(teacher), 19, validation_fraction=0, num_proc=1, unit="texts"
    )
    losses = "{embedding_cosine: 10}"
    status, measured, printed = bench("--corpus", corpus.folder, "--max_size", "50kB", "--losses", losses)
    assert status == 0, printed
    assert 0 < measured["padding"] < 0.9
    padding = np.concatenate(list(corpus.train.pieces())) == 0
    assert measured["padding"] == pytest.approx(padding.mean())
    assert 4 * measured["model"]["parameters"] < 50_000
    assert measured["objective"].keys() == {"embedding_cosine"}


@pytest.mark.parametrize("option", ["--baseline", "--temperature=3", "--teacher_embeddings=kept"])
def test_options_that_would_be_ignored(bench: Callable[..., tuple[int, Any, str]], option: str) -> None:
    status, measured, printed = bench(option)
    assert status == 1
    assert measured is None
    assert option.partition("=")[0] in printed
    assert "leave it out" in printed


def test_the_lengths_of_random_texts(tmp_path: Path) -> None:
    tokenizer = WordPiece().meaningless(3000, 128)
    corpus = random_corpus(tmp_path / "texts", 300, 128, tokenizer, texts=True)
    assert len(corpus.train) >= 300
    assert corpus.manifest.unit == "texts"
    ids = np.concatenate(list(corpus.train.pieces())).reshape(-1, 128)
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    flat = ids[ids != tokenizer.pad_token_id]
    lengths = np.diff(np.append(np.flatnonzero(flat == tokenizer.cls_token_id), len(flat))) - 2
    assert 25 < np.median(lengths) < 35
    assert 30 < lengths.mean() < 45
    assert lengths.min() >= 1
    again = random_corpus(tmp_path / "again", 300, 128, tokenizer, texts=True)
    assert again.train.path.read_bytes() == corpus.train.path.read_bytes()


def test_a_language_model_has_no_embedding_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--embedding_size", "8", "--use_cpu"]) == 1
    assert (
        "--embedding_size is for sentence encoders, which have an embedding of a text: leave it out."
        in capsys.readouterr().err
    )
