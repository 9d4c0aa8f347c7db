"""Texts without labels, which the teacher alone teaches: how they are read, drawn and learned from."""

import gzip
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from finetuning_samples import finetuned, flags, sentence, write_lines

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.finetuning.job import Job
from potstill.finetuning.predict import predict
from potstill.finetuning.rows import MixedSampler, Rows
from potstill.finetuning.trainer import FinetuneTrainer
from potstill.finetuning.unlabelled import Columns, read_unlabelled

TRAIN = datasets.Dataset.from_dict({"text": ["known", "other"], "label": [0, 1]})
DEV = datasets.Dataset.from_dict({"text": ["scored"], "label": [0]})
TEXT = Columns(("sentence", "text"))


def read(*names: Path | str, columns: Columns = TEXT, **options: Any) -> Any:
    return read_unlabelled(list(map(str, names)), columns, TRAIN, [DEV], "/nowhere", **options)


def test_every_format_is_read_and_what_is_left_out_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n  one \n known\n")
    write_lines(tmp_path / "b.jsonl", [{"text": "three", "label": 1}, {"text": None}, {"text": "scored"}])
    with gzip.open(tmp_path / "c.csv.gz", "wt") as file:
        file.write('sentence,x\n"four, quoted",1\ntwo,2\n')
    datasets.Dataset.from_dict({"text": ["five"]}).to_parquet(tmp_path / "d.parquet")
    found = read(tmp_path / "a.txt", tmp_path / "*.jsonl", tmp_path / "c.csv.gz", tmp_path / "d.parquet")
    assert found.rows["text"][:] == ["one", "two", "three", "four, quoted", "five"]
    expected = {"texts": 5, "empty": 2, "duplicates": 2, "in_training_rows": 1, "in_scored_rows": 1, "bad": 0}
    assert found.counts == expected
    left_out = "left out: 2 are empty, 2 occur twice, 1 is a training row, 1 is a scored row."
    assert f"5 unlabelled texts from 4 files; {left_out}" in capsys.readouterr().err


def test_pairs(tmp_path: Path) -> None:
    train = datasets.Dataset.from_dict({"text": ["a"], "pair": ["b"], "label": [0]})
    write_lines(tmp_path / "pairs.jsonl", [{"s": "a", "t": "b"}, {"s": "a", "t": "c"}, {"s": "a", "t": ""}])
    columns = Columns(("s",), ("t",), given=True)
    found = read_unlabelled([str(tmp_path / "pairs.jsonl")], columns, train, [], "/nowhere")
    assert found.rows[:] == {"text": ["a"], "pair": ["c"]}
    assert found.counts["in_training_rows"] == found.counts["empty"] == 1
    (tmp_path / "lines.txt").write_text("a\n")
    with pytest.raises(PotstillError, match="is one text, but the task is on pairs: give a table with the columns s"):
        read(tmp_path / "lines.txt", columns=columns)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "texts.pdf").write_text("%PDF")
    with pytest.raises(PotstillError, match=r"has a kind that cannot be read: give .txt, .jsonl"):
        read(tmp_path / "texts.pdf")
    with pytest.raises(PotstillError, match=r"There is no file or folder .*: check the path given to --unlabelled"):
        read(tmp_path / "none.txt")
    write_lines(tmp_path / "other.jsonl", [{"body": "one"}])
    with pytest.raises(PotstillError, match=r"has no column 'sentence', only 'body'.* with --unlabelled_columns"):
        read(tmp_path / "other.jsonl")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(PotstillError, match=r"no text is left of .*empty.txt, because it is empty: give other texts"):
        read(tmp_path / "empty.txt")
    (tmp_path / "known.txt").write_text("known\nscored\n")
    with pytest.raises(PotstillError, match="because of its texts 1 is a training row, 1 is a scored row"):
        read(tmp_path / "known.txt")
    write_lines(tmp_path / "bad.jsonl", [{"text": 7}, {"text": "fine"}])
    with pytest.raises(PotstillError, match="row 1: a text was expected, not 7; correct the row"):
        read(tmp_path / "bad.jsonl")
    assert read(tmp_path / "bad.jsonl", on_bad_rows="skip").counts["bad"] == 1


@pytest.mark.parametrize(("unlabelled", "drawn"), [(10, 10), (10, 3), (10, 25), (1, 2)])
def test_an_epoch_has_all_labelled_rows_and_goes_on_among_the_others(unlabelled: int, drawn: int) -> None:
    labelled = 6
    sampler = MixedSampler(np.arange(1, labelled + unlabelled + 1), labelled, drawn, 4, seed=5)
    others: Counter[int] = Counter()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert len(rows) == len(sampler) == labelled + drawn
        assert rows == list(sampler)  # an epoch can be read again, as a resumed run does
        counts = Counter(rows)
        assert all(counts.pop(row) == 1 for row in range(labelled))
        others += counts
    assert set(others) == set(range(labelled, labelled + unlabelled))
    assert max(others.values()) - min(others.values()) <= 1
    sampler.set_epoch(0)
    first = list(sampler)
    assert max(first[:4]) == max(first)  # the longest row is in the first batch
    sampler.set_epoch(1)
    assert first != list(sampler) or unlabelled == 1


def test_every_batch_has_its_share_of_labelled_rows_and_rows_of_like_length() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 1000)
    sampler = MixedSampler(lengths, 200, 800, 20, seed=0)
    batches = np.array(list(sampler)).reshape(50, 20)
    labelled = (batches < 200).sum(1)
    assert labelled.min() >= 3
    assert labelled.max() <= 5
    assert np.ptp(lengths[batches], axis=1).mean() < 10


def test_rows_without_labels_follow() -> None:
    one = Rows({"input_ids": np.arange(3, dtype=np.int32)}, {"labels": np.array([1, 0])}, np.array([1, 2]))
    other = Rows({"input_ids": np.arange(2, dtype=np.int32)}, {}, np.array([2]))
    both = one.followed_by(other)
    assert both.labelled == 2
    assert both.__getitems__([2, 0])["labels"].tolist() == [-100, 1]
    assert both.__getitems__([2])["input_ids"].tolist() == [[0, 1, 0, 0, 0, 0, 0, 0]]
    scores = Rows(one.tokens, {"labels": np.array([1.5, 2.5], np.float32)}, one.lengths).followed_by(other)
    assert np.isnan(scores.values["labels"][2])
    assert both.part(1, 3).tokens["input_ids"].tolist() == [1, 2, 0, 1]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Texts whose first word tells what the teacher says of them."""
    rng = random.Random(9)
    rows = [{"sentence": f"{('bol', 'kim')[n % 2]} {sentence(rng, rng.randint(2, 20))} ."} for n in range(80)]
    write_lines(tmp_path / "texts.jsonl", rows)
    return tmp_path / "texts.jsonl"


def test_a_student_learns_from_texts_without_labels(
    teacher: Path, distilbert: Path, glue: Path, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"model": distilbert, "task": "sst2", "task_data": glue, "teacher": teacher}
    options |= {"max_train_samples": 2, "num_train_epochs": 12, "learning_rate": 5e-3, "alpha_ce": 1}
    found = finetuned(**options, unlabelled=texts, output_dir=tmp_path / "out")
    assert found["score"] > found["without_unlabelled"]["score"] + 15
    assert found["rows"] == {"train": 2, "dev": 12}
    assert found["unlabelled"]["texts"] == found["unlabelled"]["per_epoch"] == 80
    assert found["steps"] == 12 * -(-82 // 8)
    assert found["without_unlabelled"]["steps"] == found["without_teacher"]["steps"] == 12
    printed = capsys.readouterr()
    assert "the same run without the unlabelled texts: accuracy" in printed.out
    assert "computing the teacher's logits of 80 unlabelled texts" in printed.err
    assert "2 labelled and 80 of 80 unlabelled rows" in printed.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of 80 unlabelled texts too" in card
    head = "| with the teacher and unlabelled texts | same run without these texts | same run without the teacher |"
    assert head in card
    alone = finetuned(**options, output_dir=tmp_path / "alone", without_teacher_too=False)
    assert alone["metrics"] == found["without_unlabelled"]["metrics"]
    recipe = tmp_path / "out" / "recipe.yaml"
    assert main(["finetune", "--config", str(recipe), "--output_dir", str(tmp_path / "again"), "--max_steps=1"]) == 0


def test_unlabelled_rows_have_the_teachers_logits_and_a_loss_without_labels(
    teacher: Path, new_model: Callable[..., Path], glue: Path, texts: Path, new_job: Callable[..., Job]
) -> None:
    """The student's tokenizer is another one than the teacher's."""
    options: dict[str, Any] = {"model": str(new_model("roberta")), "task": "sst2", "task_data": str(glue)}
    options |= {"teacher": str(teacher), "max_train_samples": 5, "alpha_ce": 0.2, "alpha_task": 0.7}
    job = new_job(**options, unlabelled=[str(texts)], unlabelled_ratio=3.0).with_teacher()
    assert (job.train.labelled, len(job.train), job.drawn) == (5, 85, 15)
    itself = new_job(model=str(teacher), task="sst2", task_data=str(glue))
    assert job.unlabelled is not None
    rows = itself.data.rows(job.unlabelled.rows, itself.tokenizer, 128, 8)
    expected = predict(itself.new_model(), rows, 8)["logits"]
    np.testing.assert_allclose(job.train.values["soft"][5:], expected, atol=1e-5)
    trainer = FinetuneTrainer(job.new_model(), job)
    trainer.trained.eval()
    losses = trainer.model(**job.train.__getitems__([5, 6, 7]))
    assert losses["task"] == 0
    assert losses["ce"] > 0
    losses = trainer.model(**job.train.__getitems__([0, 1, 2, 3, 4, *range(5, 20)]))
    labelled = trainer.model(**job.train.__getitems__([0, 1, 2, 3, 4]))
    assert losses["task"].item() == pytest.approx(labelled["task"].item() * 5 / 20, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "--unlabelled is .*: it needs a teacher: name one with --teacher"),
        ({"alpha_ce": 0.0}, "it teaches nothing with --alpha_ce 0"),
        ({"unlabelled_ratio": 0}, "--unlabelled_ratio is 0.0: it must be above 0"),
        ({"unlabelled": None, "unlabelled_ratio": 2}, "--unlabelled_ratio is 2.0: it needs --unlabelled"),
        ({"unlabelled_columns": "a b"}, "--unlabelled_columns names 2: it must name the columns of one text"),
        ({"task": "squad"}, "it is for tasks on texts and on words: leave it out for squad"),
        ({"class_weights": "equal"}, "--class_weights is 'equal': it must be 'balanced'"),
        ({"task": "stsb", "class_weights": "balanced"}, "balanced, but STS-B has no classes: leave it out"),
    ],
)
def test_refused(
    teacher: Path,
    distilbert: Path,
    glue: Path,
    tmp_path: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    given: dict[str, Any] = {"model": distilbert, "task": "sst2", "task_data": glue, "teacher": teacher}
    given |= {"unlabelled": texts, "output_dir": tmp_path / "out"} | options
    words = given.pop("unlabelled_columns", None)
    assert main([*flags(**given), *(["--unlabelled_columns", *words.split()] if words else [])]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
