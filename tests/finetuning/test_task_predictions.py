"""What a model says of rows, in their order; and what a teacher says, computed once and kept."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from finetuning_samples import SPANS
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from potstill import PotstillError
from potstill.cache import cache_folder
from potstill.finetuning import soft_targets as kept_targets
from potstill.finetuning.job import Job
from potstill.finetuning.predict import fingerprint, predict, scored_fingerprint
from potstill.finetuning.rows import Rows
from potstill.finetuning.soft_targets import soft_targets
from potstill.tasks.glue import GLUE
from potstill.training.run_record import model_fingerprint

NewJob = Callable[..., Job]


@pytest.fixture
def sentences(new_job: NewJob, teacher: Path, glue: Path) -> Job:
    return new_job(model=str(teacher), task="sst2", task_data=str(glue))


def test_logits_are_in_the_order_of_the_rows(sentences: Job, teacher: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(teacher).train()
    found = predict(model, sentences.train, batch_size=4)["logits"]
    assert model.training  # as it was
    assert found.dtype == np.float32
    model.eval()
    for text, logits in zip(sentences.data.train["text"][:], found, strict=True):
        with torch.no_grad():
            expected = model(**sentences.tokenizer(text, return_tensors="pt")).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.ptp(found[:, 0]) > 0.1
    assert predict(model, sentences.train, 4, torch.bfloat16)["logits"].dtype == np.float32


def test_logits_of_spans_are_in_the_order_of_the_windows(new_job: NewJob, span_teacher: Path, squad: Path) -> None:
    job = new_job(model=str(span_teacher), task="squad", task_data=str(squad), **SPANS)
    model = AutoModelForQuestionAnswering.from_pretrained(span_teacher).eval()
    found = predict(model, job.train, batch_size=5)
    assert {name: array.shape for name, array in found.items()} == {
        name: (job.train.lengths.sum(),) for name in ("start_logits", "end_logits")
    }
    assert len(set(job.train.lengths.tolist())) > 1
    at = 0
    for window in job.train.windows:
        inputs = {name: torch.tensor([window[name]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            expected = model(**inputs)
        for name, array in found.items():
            got = array[at : at + window["length"]]
            np.testing.assert_allclose(got, expected[name][0].numpy(), atol=1e-5)
        at += window["length"]


class Counted(torch.nn.Module):
    """Says the number of tokens of each row, and counts the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.rows = 0

    def forward(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool = False) -> Any:
        self.rows += len(input_ids)
        return AttributeDict(logits=attention_mask.sum(1, keepdim=True) * self.weight)


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


@pytest.fixture
def rows() -> Rows:
    lengths = np.array([3, 1, 2])
    return Rows({"input_ids": np.arange(6, dtype=np.int32)}, {}, lengths)


def test_soft_targets_are_computed_once_for_a_teacher_and_rows(rows: Rows, teacher: Path, span_teacher: Path) -> None:
    model = Counted()
    for _ in range(2):
        found = soft_targets(model, teacher, rows, 2)
        assert found["logits"].tolist() == [[3], [1], [2]]
        assert isinstance(found["logits"], np.memmap)
        assert model.rows == 3
    soft_targets(model, span_teacher, rows, 2)  # other weights
    assert model.rows == 6
    changed = Rows(rows.tokens | {"input_ids": np.arange(1, 7, dtype=np.int32)}, {}, rows.lengths)
    soft_targets(model, teacher, changed, 2)
    assert model.rows == 9
    soft_targets(model, teacher, Rows(rows.tokens, {}, np.array([2, 2, 2])), 2)
    assert model.rows == 12
    soft_targets(model, teacher, Rows(rows.tokens | {"token_type_ids": np.zeros(6, np.int8)}, {}, rows.lengths), 2)
    assert model.rows == 15
    soft_targets(model, teacher, rows, 2, torch.bfloat16)
    assert model.rows == 18
    soft_targets(model, teacher, rows, 2)
    assert model.rows == 18


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(
    rows: Rows, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def killed(path: Path, array: np.ndarray) -> None:
        save(path, array[:1])
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        writer = multiprocessing.get_context("fork").Process(target=soft_targets, args=(Counted(), teacher, rows, 2))
        writer.start()
        writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    kept = cache_folder() / "soft-targets"
    (abandoned,) = kept.glob(".parts-*")
    os.utime(abandoned, (0, 0))
    model = Counted()
    assert soft_targets(model, teacher, rows, 2)["logits"].tolist() == [[3], [1], [2]]
    assert model.rows == 3
    assert len(list(kept.iterdir())) == 1  # what was left behind long ago is gone
    assert not abandoned.exists()


def test_processes_that_need_the_same_logits_compute_them_once(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = np.array([3, 1, 2, 4, 1, 5, 2])
    rows = Rows({"input_ids": np.arange(18, dtype=np.int32)}, {}, lengths)
    monkeypatch.setattr(kept_targets, "PART", 2)

    class Slow(Counted):
        def forward(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool = False) -> Any:
            time.sleep(0.1)
            return super().forward(input_ids, attention_mask, output_hidden_states)

    def run(number: int) -> None:
        model = Slow()
        found = soft_targets(model, teacher, rows, 2)
        assert found["logits"][:, 0].tolist() == lengths.tolist()
        (tmp_path / str(number)).write_text(str(model.rows))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(int((tmp_path / str(number)).read_text()) for number in range(4)) == [0, 0, 0, 7]
    assert len(list((cache_folder() / "soft-targets").iterdir())) == 1


def test_an_interrupted_computation_continues_with_the_first_part_that_is_missing(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = np.array([3, 1, 2, 4, 1, 5, 2])
    rows = Rows({"input_ids": np.arange(18, dtype=np.int32)}, {}, lengths)
    monkeypatch.setattr(kept_targets, "PART", 3)
    monkeypatch.setattr("potstill.live_line.SECONDS_PER_LINE", 0.0)

    class Interrupted(Counted):
        def forward(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool = False) -> Any:
            if self.rows >= 3:
                raise KeyboardInterrupt
            return super().forward(input_ids, attention_mask, output_hidden_states)

    with pytest.raises(KeyboardInterrupt):
        soft_targets(Interrupted(), teacher, rows, 2)
    model = Counted()
    assert soft_targets(model, teacher, rows, 2, what="texts")["logits"][:, 0].tolist() == lengths.tolist()
    assert model.rows == 4
    printed = capsys.readouterr().err
    assert "computing the teacher's logits of 7 texts (3 are there)" in printed
    assert "teacher's logits: 3 of 4 texts (75%)" in printed
    assert len(list((cache_folder() / "soft-targets").iterdir())) == 1


def test_logits_that_are_no_numbers_are_not_kept(rows: Rows, teacher: Path) -> None:
    model = Counted()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(PotstillError, match="are not all finite numbers"):
        soft_targets(model, teacher, rows, 2)
    assert not list((cache_folder() / "soft-targets").iterdir())


def test_answers_that_are_no_numbers_are_not_scored(sentences: Job) -> None:
    """Whatever class argmax makes of them would be counted."""
    logits = np.zeros((len(sentences.dev["dev"]), 2), np.float32)
    assert sentences.data.score(lambda rows: {"logits": logits}, sentences.dev)["score"] == 50
    logits[3, 1] = np.nan
    with pytest.raises(PotstillError, match=r"logits for 1 of the 12 rows of dev are not finite"):
        sentences.data.score(lambda rows: {"logits": logits}, sentences.dev)
    with pytest.raises(PotstillError, match=r"1 of 2 predictions for STS-B are not finite"):
        GLUE["stsb"].score([1.0, np.inf], [1.0, 2.0])


def test_a_cache_that_cannot_be_written_or_read(
    rows: Rows, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft_targets(Counted(), teacher, rows, 2)
    (file,) = cache_folder().rglob("logits.npy")
    file.write_bytes(b"")
    with pytest.raises(PotstillError, match=r"cannot be read .*: remove that folder"):
        soft_targets(Counted(), teacher, rows, 2)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(PotstillError, match="or name another folder in POTSTILL_CACHE"):
        soft_targets(Counted(), teacher, rows, 2)


def test_fingerprints(sentences: Job, teacher: Path, span_teacher: Path) -> None:
    data = sentences.data
    tables = {"train": data.train, **data.dev}
    assert fingerprint(tables) == fingerprint(dict(reversed(tables.items())))
    assert fingerprint(tables) != fingerprint({"train": data.train.select(range(5)), **data.dev})
    assert fingerprint({"a": data.train}) != fingerprint({"b": data.train})
    assert model_fingerprint(teacher) == model_fingerprint(str(teacher))
    assert model_fingerprint(teacher) != model_fingerprint(span_teacher)
    assert kept_targets._key(teacher, sentences.train, None) != kept_targets._key(span_teacher, sentences.train, None)


def test_the_fingerprint_of_scored_rows_has_the_names_of_labels() -> None:
    """Training rows without a label shift the numbers of the others, and the rows to score stay the same."""

    def of(labels: list[Any], names: tuple[str, ...], texts: str = "xy") -> str:
        return scored_fingerprint({"dev": datasets.Dataset.from_dict({"text": [*texts], "label": labels})}, names)

    one = of([0, 2], ("a", "b", "c"))
    assert one == of([0, 1], ("a", "c"))
    assert one != of([0, 1], ("a", "b"))
    assert one != of([0, 2], ("a", "b", "c"), "xz")
    assert of([[0], [0, 2]], ("a", "b", "c")) == of([[0], [0, 1]], ("a", "c"))
    assert of([0.5, 1.0], ()) != of([0.5, 1.5], ())
