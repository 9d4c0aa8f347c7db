"""A tiny sentence encoder is distilled: what it learns, what is written, and what a resumption gives."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sentence_samples import TEXTS, random_dense, small_encoder
from transformers import AutoModel

from potstill import DistillationArguments, distill
from potstill.corpus import Corpus, prepare
from potstill.sentences import SentenceEncoder, build_sentence_student
from potstill.sentences.trainer import SentenceTrainer
from potstill.training.checkpoints import OBJECTIVE


def options(teacher: Path, corpus: Path, output_dir: Path, **changes: Any) -> DistillationArguments:
    given: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "use_cpu": True,
    }
    return DistillationArguments(
        teacher=str(teacher), corpus=str(corpus), output_dir=str(output_dir), **(given | changes)
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in a folder and its modules, but not those in its checkpoints."""
    files = [file for file in folder.rglob("*.safetensors") if "checkpoint" not in str(file.relative_to(folder))]
    return {f"{file.relative_to(folder)} {name}": value for file in files for name, value in load_file(file).items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def naive_embedding(encoder: SentenceEncoder, ids: list[int]) -> np.ndarray:
    """The embedding of one text alone, pooled by the mean and normalised."""
    with torch.no_grad():
        mean = encoder.model(torch.tensor([ids])).last_hidden_state[0].double().numpy().mean(0)
    return mean / math.sqrt((mean**2).sum())


def held_out_texts(corpus: Corpus, encoder: SentenceEncoder) -> list[list[int]]:
    """The token ids of every held-out text, with its frame."""
    found: list[list[int]] = []
    for item in corpus.validation:
        for token in item["input_ids"].tolist():
            if token == encoder.tokenizer.cls_token_id:
                found.append([])
            if token != encoder.tokenizer.pad_token_id:
                found[-1].append(token)
    return found


def test_from_start_to_end(encoder_folder: Path, texts_corpus: Path, tmp_path: Path) -> None:
    folder = distill(
        options(encoder_folder, texts_corpus, tmp_path / "student", max_steps=20, eval_on_start=True, layers="last")
    )
    results = json.loads((folder / "results.json").read_text())
    losses = [entry["loss"] for entry in results["log_history"] if "loss" in entry]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    held_out = results["held_out"]
    assert held_out["final"]["loss"] < 0.8 * held_out["initial"]["loss"]
    assert results["cost"]["steps"] == 20
    assert results["cost"]["tokens"] == 20 * 8 * 19

    corpus, teacher, student = Corpus.open(texts_corpus), *map(SentenceEncoder.load, (encoder_folder, folder))
    texts = held_out_texts(corpus, teacher)
    untrained = build_sentence_student(teacher, layers="last")
    for encoder, found in ((student, held_out["final"]), (untrained, held_out["initial"])):
        distances = [1 - naive_embedding(teacher, text) @ naive_embedding(encoder, text) for text in texts]
        assert found["distance"] == pytest.approx(np.mean(distances), rel=1e-3)

    assert student.model.config.num_hidden_layers == 2
    assert student.model.config.architectures == ["BertModel"]
    config = (folder / "config.json").read_text()
    assert "potstill" not in config
    model = AutoModel.from_pretrained(folder).eval()
    assert model.config._attn_implementation in ("sdpa", "eager")
    inputs = student.tokenizer(TEXTS[:3], return_tensors="pt", padding=True)
    theirs = student.pool(model(**inputs).last_hidden_state, inputs["attention_mask"])
    np.testing.assert_allclose(student.finish(theirs).detach().numpy(), student.encode(TEXTS[:3]), atol=1e-5)

    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["losses"] == {"embedding_cosine": 10.0, "hidden_cosine": 1.0}
    assert recipe["layers"] == "last"
    assert not {"alpha_ce", "temperature", "masking", "mlm_probability", "fold_token_types"} & recipe.keys()
    card = (folder / "README.md").read_text()
    assert f"{held_out['initial']['distance']:.4f} before training and {held_out['final']['distance']:.4f}" in card
    assert "SentenceTransformer(" in card
    assert "alpha_ce" not in card
    measured = {one.metric_type: one.metric_value for one in ModelCard(card).data.eval_results}
    assert measured == held_out["final"]
    assert not list(folder.rglob(OBJECTIVE))

    again = distill(DistillationArguments(output_dir=str(tmp_path / "again"), **recipe))
    assert_same(weights(again), weights(folder))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("modes", [("mean",), ("cls", "max")], ids=" ".join)
def test_the_saved_folder_is_the_trained_student(texts_corpus: Path, tmp_path: Path, modes: tuple[str, ...]) -> None:
    dense = random_dense(24 * len(modes), 6, activation="Tanh") if len(modes) > 1 else []
    teacher = small_encoder(modes=modes, dense=dense)
    student = build_sentence_student(teacher)
    args = options(tmp_path, texts_corpus, tmp_path / "run", max_steps=3)
    trainer = SentenceTrainer(student, texts_corpus, args, teacher)
    before = student.encode(TEXTS)
    trainer.train()
    trained = trainer.student.encode(TEXTS)
    assert np.abs(trained - before).max() > 1e-3
    trainer.student.save(tmp_path / "saved")
    np.testing.assert_allclose(SentenceEncoder.load(tmp_path / "saved").encode(TEXTS), trained, atol=1e-5)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), trained, atol=1e-5)


def test_the_teacher_and_the_arguments_stay_as_they_were(texts_corpus: Path, tmp_path: Path) -> None:
    teacher = small_encoder().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    embeddings = teacher.encode(TEXTS)
    args = options(tmp_path, texts_corpus, tmp_path / "run", max_steps=2)
    trainer = SentenceTrainer(build_sentence_student(teacher), texts_corpus, args, teacher)
    trainer.train()
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert_same(teacher.state_dict(), before)
    np.testing.assert_array_equal(teacher.encode(TEXTS), embeddings)
    assert args.losses is None
    assert args.ddp_find_unused_parameters is False


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dense": {"losses": {"embedding_mse": 1.0, "similarities": 1.0}},
    "narrow": {"hidden_size": 16, "losses": {"embedding_mse": 1.0, "embedding_cosine": 5.0, "hidden_mse": 1.0}},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_resumption_gives_the_same_weights(
    encoder_folder: Path, texts_corpus: Path, tmp_path: Path, run: str
) -> None:
    teacher = encoder_folder
    if run == "dense":
        teacher = tmp_path / "teacher"
        small_encoder(dense=random_dense(24, 6, activation="Tanh")).save(teacher)
    given = RUNS[run] | {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 5}
    whole = distill(options(teacher, texts_corpus, tmp_path / "whole", **given))
    objective = whole / "checkpoint-3" / OBJECTIVE
    assert objective.is_file() == (run != "plain")
    if run == "narrow":
        trained = {name: tuple(tensor.shape) for name, tensor in load_file(objective).items()}
        assert trained == {
            "embedding_mse.weight": (24, 16),
            "embedding_cosine.weight": (24, 16),
            "hidden_mse.0.weight": (24, 16),
            "hidden_mse.0.bias": (24,),
        }
        later = load_file(whole / "checkpoint-6" / OBJECTIVE)
        assert all(not torch.equal(later[name], tensor) for name, tensor in load_file(objective).items())
    assert not [file for file in whole.iterdir() if file.name == OBJECTIVE]

    resumed = options(teacher, texts_corpus, tmp_path / "resumed", **given)
    resumed.resume_from_checkpoint = str(whole / "checkpoint-3")
    again = distill(resumed)
    assert_same(weights(again), weights(whole))
    logs = [
        [entry["loss"] for entry in json.loads((folder / "results.json").read_text())["log_history"] if "loss" in entry]
        for folder in (again, whole)
    ]
    assert logs[0][-3:] == logs[1][-3:]


def test_the_best_checkpoint_brings_its_dense_modules(texts_corpus: Path, tmp_path: Path) -> None:
    teacher = small_encoder(dense=random_dense(24, 6, activation="Tanh"))
    args = options(
        tmp_path,
        texts_corpus,
        tmp_path / "run",
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=None,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worst, which is an early one
    )
    trainer = SentenceTrainer(build_sentence_student(teacher), texts_corpus, args, teacher)
    trainer.train()
    best = tmp_path / "run" / f"checkpoint-{trainer.state.best_global_step}"
    assert best.name == "checkpoint-2"
    saved = load_file(best / OBJECTIVE)
    for name, tensor in trainer.student.dense.state_dict().items():
        assert torch.equal(tensor, saved[f"dense_of_student.{name}"])
    assert torch.equal(
        trainer.student.model.embeddings.word_embeddings.weight,
        load_file(best / "model.safetensors")["embeddings.word_embeddings.weight"],
    )


def test_micro_batches_and_recomputed_activations_change_nothing(texts_corpus: Path, tmp_path: Path) -> None:
    teacher = small_encoder()
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(teacher.model.config, name, 0.0)
    found = []
    for number, changes in enumerate(
        [
            {},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            {"activation_checkpointing": True},
        ]
    ):
        args = options(tmp_path, texts_corpus, tmp_path / str(number), max_steps=3, **changes)
        trainer = SentenceTrainer(build_sentence_student(teacher), texts_corpus, args, teacher)
        trainer.train()
        assert trainer.student.model.encoder.layer[0].gradient_checkpointing == (number == 2)
        found.append(trainer.student.encode(TEXTS))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


@pytest.mark.parametrize("model_type", ["distilbert", "roberta", "electra"])
def test_other_families(texts_corpus: Path, tmp_path: Path, model_type: str) -> None:
    small_encoder(model_type).save(tmp_path / "teacher")
    folder = distill(options(tmp_path / "teacher", texts_corpus, tmp_path / "student", max_steps=4))
    results = json.loads((folder / "results.json").read_text())
    assert results["held_out"]["initial"] is None
    teacher, student = SentenceEncoder.load(tmp_path / "teacher"), SentenceEncoder.load(folder)
    texts = held_out_texts(Corpus.open(texts_corpus), teacher)
    distances = [1 - naive_embedding(teacher, text) @ naive_embedding(student, text) for text in texts]
    assert results["held_out"]["final"]["distance"] == pytest.approx(np.mean(distances), rel=1e-3)


def test_a_cut_vocabulary(encoder_folder: Path, texts_path: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(texts_path.read_text().splitlines()[:12]))
    corpus = prepare(
        [str(few)], str(tmp_path / "corpus"), str(encoder_folder), 19, unit="texts", prune_vocabulary=True, num_proc=1,
        validation_fraction=0,
    )  # fmt: skip
    args = options(encoder_folder, tmp_path / "corpus", tmp_path / "student", per_device_train_batch_size=2)
    folder = distill(args)
    student, teacher = SentenceEncoder.load(folder), SentenceEncoder.load(encoder_folder)
    assert student.model.config.vocab_size == corpus.manifest.tokenizer.vocab_size < teacher.model.config.vocab_size
    lines = few.read_text().splitlines()
    assert (student.encode(lines) * teacher.encode(lines)).sum(1).min() > 0.5
    assert json.loads((folder / "results.json").read_text())["held_out"]["final"] is None


def test_a_narrower_student(encoder_folder: Path, texts_corpus: Path, tmp_path: Path) -> None:
    args = options(encoder_folder, texts_corpus, tmp_path / "student", hidden_size=16, max_steps=20)
    folder = distill(args)
    student = SentenceEncoder.load(folder)
    assert student.width == student.model.config.hidden_size == 16
    assert student.model.config.num_attention_heads == 2
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["losses"] == {"similarities": 10.0, "hidden_mse": 1.0}
    results = json.loads((folder / "results.json").read_text())
    losses = [entry["loss"] for entry in results["log_history"] if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert "loss" in results["held_out"]["final"]
    assert "distance" not in results["held_out"]["final"]
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, student.encode(TEXTS), atol=1e-5)
