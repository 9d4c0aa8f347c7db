"""The shape and the layers of a sentence encoder's student are chosen by a budget and by measurement."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_samples import random_dense, small_encoder
from test_sentence_training import naive_embedding, options

from potstill import PotstillError, distill
from potstill.corpus import Corpus, prepare
from potstill.sentences import SentenceEncoder, build_sentence_student
from potstill.sentences.layer_search import find_encoder_layers
from potstill.sentences.trainer import attended_length, row_format


def texts_in(corpus: Corpus, split: str) -> list[list[int]]:
    """The token ids of all texts of a split."""
    found: list[list[int]] = []
    for item in getattr(corpus, split):
        for token in item["input_ids"].tolist():
            if token == 2:  # [CLS]
                found.append([])
            if token:
                found[-1].append(token)
    return found


def written_bytes(folder: Path) -> int:
    files = [file for file in folder.rglob("*.safetensors") if "checkpoint" not in str(file)]
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("budget", "dense"), [("30kB", False), ("60kB", True), ("1.9x", False), ("9k", False)], ids=str
)
def test_the_student_keeps_to_a_budget(
    texts_corpus: Path, tmp_path: Path, budget: str, dense: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = small_encoder(dense=random_dense(24, 12, 6) if dense else [])
    teacher.save(tmp_path / "teacher")
    given: dict[str, Any] = {"max_steps": 1, "max_size": budget, "eval_strategy": "no"}
    folder = distill(options(tmp_path / "teacher", texts_corpus, tmp_path / "student", **given))
    results = json.loads((folder / "results.json").read_text())
    estimate, written = results["max_size"]["estimate"], results["max_size"]["file_bytes"]
    said = capsys.readouterr().err
    assert said.index(f"--max_size {budget}: ") < said.index("step 1/1")
    assert "weights on disk: " in said
    assert written == written_bytes(folder)
    assert estimate["file_bytes"] == pytest.approx(written, rel=0.01)
    student = SentenceEncoder.load(folder)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    assert estimate["parameters"] == parameters == results["parameters"]
    if budget.endswith("kB"):
        assert written <= float(budget[:-2]) * 1000
        assert student.model.config.hidden_size == 24 if dense else True
    elif budget == "9k":
        assert parameters <= 9000
    else:
        assert estimate["speed_up"] >= 1.9
    assert f"keep to `{budget}`" in (folder / "README.md").read_text()
    assert student.encode(["It is."]).shape == (1, student.width)


@pytest.mark.usefixtures("no_hub")
def test_a_budget_counts_the_cut_vocabulary(encoder_folder: Path, texts_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(line.split()[:4]) for line in texts_path.read_text().splitlines()[:60]) + "\n")
    corpus = prepare([str(text)], str(tmp_path / "corpus"), str(encoder_folder), 19,
                     validation_fraction=0, num_proc=1, unit="texts", prune_vocabulary=True)  # fmt: skip
    kept, whole = corpus.manifest.tokenizer.vocab_size, corpus.manifest.whole_tokenizer
    assert whole is not None
    assert kept < whole.vocab_size
    folder = distill(options(encoder_folder, corpus.folder, tmp_path / "student", max_steps=1, max_size="40kB"))
    estimate = json.loads((folder / "results.json").read_text())["max_size"]["estimate"]
    assert estimate["embedding_bytes"] == 4 * kept * estimate["hidden_size"]
    assert estimate["file_bytes"] == pytest.approx(written_bytes(folder), rel=0.01)


def test_an_impossible_budget_is_refused_before_training(
    encoder_folder: Path, texts_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(PotstillError, match="No student keeps to --max_size 1kB"):
        distill(options(encoder_folder, texts_corpus, tmp_path / "student", max_size="1kB"))
    assert not (tmp_path / "student").exists()


def test_the_length_that_attention_sees(texts_corpus: Path) -> None:
    corpus = Corpus.open(texts_corpus)
    lengths = np.array([len(text) for text in texts_in(corpus, "train")])
    rows = row_format(corpus, small_encoder())
    assert attended_length(corpus, rows) == round((lengths**2).sum() / lengths.sum())


@pytest.mark.parametrize("modes", [("mean",), ("cls", "max")], ids=" ".join)
def test_choices_are_scored_by_the_embeddings_of_their_students(texts_corpus: Path, modes: tuple[str, ...]) -> None:
    dense = random_dense(24 * len(modes), 6, activation="Tanh") if len(modes) > 1 else []
    corpus, teacher = Corpus.open(texts_corpus), small_encoder(modes=modes, dense=dense)
    rows = row_format(corpus, teacher)
    search = find_encoder_layers(teacher, corpus, rows, 2, 60, 3)
    assert search.finished
    assert search.unit == "texts"
    assert {(0, 3), (0, 1), (2, 3)} <= {score.layers for score in search.tried}
    assert search.tokens == len(texts_in(corpus, "validation"))
    assert teacher.model.config._attn_implementation != "potstill_rows"
    losses = [score.loss for score in search.tried]
    assert losses == sorted(losses)
    for score in search.tried:
        student = build_sentence_student(teacher, layers=score.layers)
        distances = []
        for text in texts_in(corpus, "validation"):
            ids = torch.tensor([text])
            with torch.no_grad():
                ours, theirs = (one(ids, torch.ones_like(ids))[0].double().numpy() for one in (student, teacher))
            distances.append(1 - ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        assert score.loss == pytest.approx(np.mean(distances), rel=1e-4)


def test_auto_starts_from_the_best_layers_and_a_resumption_from_the_same(
    encoder_folder: Path, texts_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"layers": "auto", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_on_start": True}
    given["layers_seconds"] = 60.0
    folder = distill(options(encoder_folder, texts_corpus, tmp_path / "student", **given))
    results = json.loads((folder / "results.json").read_text())
    search = results["layer_search"]
    best = search["tried"][0]
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["layers"] == ",".join(map(str, best["layers"]))
    assert recipe.get("layers_seconds", 30.0) == 30.0  # a rerun does not search
    # All held-out texts were searched and evaluated, so the two figures are the same.
    assert search["evaluated_too"]
    assert results["held_out"]["initial"]["distance"] == pytest.approx(best["loss"], rel=1e-4)
    corpus, teacher = Corpus.open(texts_corpus), SentenceEncoder.load(encoder_folder)
    student = build_sentence_student(teacher, layers=best["layers"])
    texts = texts_in(corpus, "validation")
    distances = [1 - naive_embedding(teacher, text) @ naive_embedding(student, text) for text in texts]
    assert best["loss"] == pytest.approx(np.mean(distances), rel=1e-3)
    card = (folder / "README.md").read_text()
    assert f"on {len(texts)} texts of" in card
    assert "| 1 − cosine |" in card.replace("  ", " ")

    monkeypatch.setattr("potstill.sentences.distill.find_encoder_layers", None)  # no search is made again
    resumed = options(encoder_folder, texts_corpus, tmp_path / "student", **given)
    resumed.resume_from_checkpoint = str(folder / "checkpoint-2")
    again = json.loads((distill(resumed) / "results.json").read_text())
    assert again["layer_search"]["tried"] == search["tried"]


def test_auto_needs_held_out_texts_and_parts_that_fit(
    encoder_folder: Path, texts_corpus: Path, texts_path: Path, tmp_path: Path
) -> None:
    corpus = prepare([str(texts_path)], str(tmp_path / "corpus"), str(encoder_folder), 19,
                     validation_fraction=0, num_proc=1, unit="texts")  # fmt: skip
    with pytest.raises(PotstillError, match="--layers auto measures layers on held-out blocks, and the corpus has non"):
        distill(options(encoder_folder, corpus.folder, tmp_path / "student", layers="auto"))
    given = {"layers": "auto", "hidden_size": 16, "losses": {"hidden_cosine": 1}}
    with pytest.raises(PotstillError, match="hidden_cosine compares hidden states of equal width"):
        distill(options(encoder_folder, texts_corpus, tmp_path / "student", **given))
    assert not (tmp_path / "student").exists()
