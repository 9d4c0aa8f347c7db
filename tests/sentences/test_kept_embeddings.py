"""The teacher's embeddings are computed once, kept on disk, and learned from as if the teacher ran in each step."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_samples import random_dense, small_encoder
from torch import Tensor

from potstill import DistillationArguments, PotstillError, distill
from potstill.corpus import Corpus
from potstill.objective import objective_from
from potstill.sentences import SentenceEncoder, build_sentence_student
from potstill.sentences import kept_embeddings as kept_module
from potstill.sentences import teacher_embeddings as module
from potstill.sentences.kept_embeddings import CHUNKS, EMBEDDINGS, EmbeddedBlocks, KeptEmbeddings
from potstill.sentences.step import SentenceStep
from potstill.sentences.teacher_embeddings import EmbeddingInterrupted
from potstill.sentences.trainer import SentenceTrainer, row_format
from potstill.training.graphs import Graphed
from potstill.training.run_record import weights_hash

LOSSES = {"embedding_cosine": 10.0, "similarities": 1.0}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and chunks so small that the corpus has several."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_module, "BLOCKS_OF_CHUNK", 10)
    return tmp_path / "cache" / "teacher-embeddings"


def arguments(corpus: Path, output_dir: Path, **changes: Any) -> DistillationArguments:
    given: dict[str, Any] = {
        "teacher": "teacher",
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "use_cpu": True,
        "losses": LOSSES,
        "teacher_embeddings": "kept",
    }
    return DistillationArguments(corpus=str(corpus), output_dir=str(output_dir), **(given | changes))


def new_trainer(corpus: Path, output_dir: Path, teacher: SentenceEncoder | None = None, **changes: Any) -> Any:
    teacher = teacher or small_encoder()
    return SentenceTrainer(build_sentence_student(teacher), corpus, arguments(corpus, output_dir, **changes), teacher)


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def texts_of(corpus: Corpus) -> list[list[int]]:
    """The token ids of all texts of the training split, in order."""
    found: list[list[int]] = []
    for item in corpus.train:
        for token in item["input_ids"].tolist():
            if token == 2:  # [CLS]
                found.append([])
            if token:
                found[-1].append(token)
    return found


@pytest.mark.parametrize("bf16", [False, True])
def test_the_losses_are_those_of_a_teacher_that_runs_in_each_step(
    texts_corpus: Path, tmp_path: Path, cache: Path, bf16: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = small_encoder(modes=("cls", "max"), dense=random_dense(48, 6, activation="Tanh"), normalize=False)
    expected = losses_of(new_trainer(texts_corpus, tmp_path / "a", teacher, teacher_embeddings="computed", bf16=bf16))
    found = losses_of(new_trainer(texts_corpus, tmp_path / "b", teacher, bf16=bf16, dataloader_num_workers=1))
    assert len(found) == 6
    assert len(set(found)) == 6
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    said = capsys.readouterr().err
    assert "computing the teacher's embeddings of" in said
    assert str(cache) in said


def test_what_is_kept_are_the_embeddings_of_the_texts_in_their_order(
    texts_corpus: Path, tmp_path: Path, cache: Path
) -> None:
    teacher = small_encoder()
    trainer = new_trainer(texts_corpus, tmp_path / "run", teacher, max_steps=1)
    trainer.train()
    (folder,) = cache.iterdir()
    kept = KeptEmbeddings(folder, trainer.step.rows.slots)
    texts = texts_of(trainer.corpus)
    assert kept.texts == len(texts)
    assert kept.chunks > 2
    with torch.no_grad():
        hidden = [teacher.model(torch.tensor([ids])).last_hidden_state[0].double().numpy() for ids in texts]
    means = np.stack([states.mean(0) for states in hidden])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(kept._embeddings, expected, atol=5e-4)

    blocks = EmbeddedBlocks(trainer.corpus.train, pickle.loads(pickle.dumps(kept)))
    last = len(blocks) - 1
    batch = blocks.__getitems__([last + len(blocks), 3])  # in a later epoch
    counts = (batch["input_ids"] == 2).sum(1).tolist()
    assert batch["embeddings"].shape == (2, trainer.step.rows.slots, 24)
    np.testing.assert_allclose(batch["embeddings"][0, : counts[0]], expected[-counts[0] :], atol=5e-4)
    assert not batch["embeddings"][0, counts[0] :].any()


def test_an_interruption_loses_nothing_and_the_next_run_computes_the_rest(
    texts_corpus: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = SentenceStep.teacher_embeddings
    calls = []

    def interrupted(step: SentenceStep, input_ids: Tensor, dtype: torch.dtype | None) -> Tensor:
        calls.append(len(input_ids))
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return embed(step, input_ids, dtype)

    monkeypatch.setattr(SentenceStep, "teacher_embeddings", interrupted)
    with pytest.raises(EmbeddingInterrupted, match="are kept: give the same command again") as error:
        new_trainer(texts_corpus, tmp_path / "run").train()
    said = re.search(r"embeddings of ([\d,]+) of", str(error.value))
    assert error.value.exit_status == 128 + signal.SIGTERM
    assert len(calls) == 5
    trainer = new_trainer(texts_corpus, tmp_path / "run")
    found = losses_of(trainer)
    whole = -(-len(trainer.corpus.train) // 10) * 2  # two batches a chunk
    assert len(calls) == 5 + whole - 4  # two chunks were complete
    assert set(calls) == {8}
    texts, computed = trainer.kept_embeddings["texts"], trainer.kept_embeddings["computed"]
    assert said is not None
    assert int(said[1].replace(",", "")) == texts - computed > 0  # what the message calls kept is not computed again

    again = new_trainer(texts_corpus, tmp_path / "again")
    assert losses_of(again) == found
    assert again.kept_embeddings["computed"] == 0
    assert len(calls) == 5 + whole - 4

    (folder,) = cache.iterdir()
    with open(folder / EMBEDDINGS, "r+b") as file:  # a damaged byte of the first chunk
        file.seek(7)
        file.write(b"\x55")
    assert losses_of(new_trainer(texts_corpus, tmp_path / "damaged")) == found
    assert len(calls) == 5 + whole - 4 + 2


def test_another_teacher_pooling_precision_or_corpus_has_its_own(texts_corpus: Path) -> None:
    corpus = Corpus.open(texts_corpus)
    teachers = [
        *(small_encoder(), small_encoder(modes=("cls",)), small_encoder(normalize=False), small_encoder()),
        *(small_encoder(dense=random_dense(24, 24, activation=name)) for name in ("Tanh", "ReLU")),
    ]
    with torch.no_grad():
        teachers[3].model.embeddings.word_embeddings.weight[7, 3] += 0.5
    teachers.append(small_encoder())
    teachers[-1].model.config.layer_norm_eps = 1e-3
    keys = [module._key(teacher, weights_hash(teacher), corpus, None) for teacher in teachers]
    keys.append(module._key(teachers[0], weights_hash(teachers[0]), corpus, torch.bfloat16))
    other = Corpus(corpus.folder, corpus.manifest, corpus.validation, corpus.validation)
    other.__dict__["fingerprint"] = "another"
    keys.append(module._key(teachers[0], weights_hash(teachers[0]), other, None))
    assert len(set(keys)) == 9
    moved = small_encoder()
    moved.model.config.name_or_path = moved.model.name_or_path = "elsewhere"
    assert module._key(moved, weights_hash(moved), corpus, None) == keys[0]


@pytest.mark.slow
def test_two_processes_share_the_work(texts_corpus: Path, encoder_folder: Path, tmp_path: Path, cache: Path) -> None:
    one = distill(arguments(texts_corpus, tmp_path / "one", teacher=str(encoder_folder), max_steps=3))
    (alone,) = cache.iterdir()
    options = {
        "teacher": encoder_folder,
        "corpus": texts_corpus,
        "output_dir": tmp_path / "two",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "use_cpu": True,
        "losses": json.dumps(LOSSES),
        "teacher_embeddings": "kept",
    }
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "potstill"),
            *("distill", *(f"--{name}={value}" for name, value in options.items())),
        ],
        capture_output=True, text=True, timeout=240, env=os.environ | {
            "OMP_NUM_THREADS": "1", "POTSTILL_CACHE": str(tmp_path / "other"),
        },
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    (shared,) = (tmp_path / "other" / "teacher-embeddings").iterdir()
    assert shared.name == alone.name
    ours, theirs = (np.fromfile(folder / EMBEDDINGS, np.float16) for folder in (shared, alone))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, tmp_path / "two")]
    assert results[1]["cost"]["processes"] == 2
    assert results[1]["teacher_embeddings"]["computed"] == results[0]["teacher_embeddings"]["texts"]
    assert results[1]["teacher_embeddings"]["kept_in"] == "float16"


@pytest.mark.parametrize(
    ("losses", "names"),
    [(None, "hidden_cosine reads"), ({"embedding_mse": 1, "hidden_cosine": 1, "hidden_mse": 1}, "hidden_.* and .*")],
)
def test_losses_that_need_the_teacher_itself(
    texts_corpus: Path, tmp_path: Path, cache: Path, losses: Any, names: str
) -> None:
    with pytest.raises(PotstillError, match=f"kept runs no teacher during training, but {names}.* hidden states"):
        new_trainer(texts_corpus, tmp_path / "run", losses=losses)
    assert not cache.exists()


def test_numbers_that_sixteen_bits_cannot_hold(texts_corpus: Path, tmp_path: Path, cache: Path) -> None:
    for scale, says in ((1e6, "too large or too small"), (1e-7, "too large or too small"), (np.inf, "not finite")):
        teacher = small_encoder(normalize=False, dense=random_dense(24, 6))
        with torch.no_grad():
            teacher.dense[0].linear.weight *= scale
            teacher.dense[0].linear.bias *= scale
        with pytest.raises(PotstillError, match=says):
            new_trainer(texts_corpus, tmp_path / "run", teacher).train()


def test_language_models_and_other_values_are_refused(
    encoder_folder: Path, texts_corpus: Path, texts_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(PotstillError, match=r"--teacher_embeddings.* must be 'computed' or 'kept'"):
        arguments(texts_corpus, tmp_path, teacher_embeddings="some")
    args = DistillationArguments(teacher=["a"], corpus=None, output_dir=str(tmp_path), teacher_embeddings="kept")
    with pytest.raises(PotstillError, match="--teacher_embeddings is for sentence encoders"):
        distill(args)


def test_a_folder_without_room_and_a_file_that_is_cut(
    texts_corpus: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        usage = type("usage", (), {"free": 1000})
        patched.setattr(kept_module.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(PotstillError, match=r"take 0.0 GB, and .* has 0.0 GB left: free some space"):
            new_trainer(texts_corpus, tmp_path / "run").train()
    new_trainer(texts_corpus, tmp_path / "run", max_steps=1).train()
    (folder,) = cache.iterdir()
    (folder / CHUNKS).write_bytes(b"")
    with pytest.raises(PotstillError, match=f"in {folder} cannot be read .*: remove that folder"):
        new_trainer(texts_corpus, tmp_path / "run").train()


def test_the_clock_of_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = type("kept", (), {"texts": 400, "width": 24, "folder": "there"})
    args: Any = type("args", (), {"world_size": 2, "process_index": 0})
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    progress = module._Progress(args, kept, 300)  # type: ignore[arg-type]
    for clock[0] in (5.0, 20.0):
        progress.advance(25)
    progress.end()
    lines = capsys.readouterr().err.splitlines()
    assert "400 texts (100 are there)" in lines[0]
    assert lines[1] == "teacher's embeddings: 100 of 300 texts (33%) · 0:40 left · 5 texts/s"
    assert len(lines) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_with_kept_embeddings_can_be_recorded(texts_corpus: Path, bf16: bool) -> None:
    corpus, teacher = Corpus.open(texts_corpus), small_encoder()
    student, objective = build_sentence_student(teacher).cuda(), objective_from(LOSSES)
    rows = row_format(corpus, student)
    plain, recorded = (SentenceStep(student, teacher, objective, rows) for _ in range(2))
    for step in (plain, recorded):
        step.to_device(torch.device("cuda"))
    recorded.record_graphs()
    assert isinstance(recorded._graphed, Graphed)
    dtype = torch.bfloat16 if bf16 else None
    for start in range(0, 24, 4):
        input_ids = corpus.train.__getitems__(list(range(start, start + 4)))["input_ids"].cuda()
        embeddings = plain.teacher_embeddings(input_ids, dtype).unflatten(0, (4, -1)).to(torch.float16)
        found = []
        for step in (plain, recorded):
            student.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                losses = step(input_ids, embeddings)
            losses["loss"].backward()
            weight = student.model.embeddings.word_embeddings.weight
            found.append((losses["loss"].item(), weight.grad.clone()))
            del losses
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-2 if bf16 else 1e-5)
        distance = (found[1][1] - found[0][1]).norm() / found[0][1].norm()
        assert distance < (0.05 if bf16 else 1e-4)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    assert len(recorded._graphed.graphs) == 1
