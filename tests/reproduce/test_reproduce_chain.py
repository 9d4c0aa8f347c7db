"""From text to a teacher and its students, tiny: the scripts as they are, the verbs in this process to save time."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from samples import written_text

from potstill.corpus import Corpus
from reproduce import students, table4, teacher
from reproduce.common import run

EMBEDDED = files("potstill") / "demo/assets/teacher"


def test_text_to_teacher_to_students(
    in_process: list[list[str]],
    tmp_path: Path,
    signals_restored: None,
    no_hub: None,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "text.txt").write_text(written_text(300, seed=1))
    (tmp_path / "other.txt").write_text(written_text(60, seed=2))
    here = ["--work_dir", str(tmp_path / "work"), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    sizes = [
        "--layers",
        "4",
        "--hidden_size",
        "16",
        "--grow",
        "1,2,4",
        "--grow_at",
        "0.25,0.5",
        "--batch_tokens",
        "128",
    ]
    lengths = ["--short_block_size", "16", "--short_share", "0.75"]
    prepared = ["--block_size", "32", "--vocab_size", "150", "--prepare_options", "num_proc=1"]
    text = ["--text", str(tmp_path / "text.txt"), "--other_text", str(tmp_path / "other.txt")]
    steps = ["--use_cpu", "--max_steps", "8", "--logging_steps", "1"]
    assert run(teacher.main, [*here, *sizes, *lengths, *prepared, *text, *steps]) == 0
    assert [words[0] for words in in_process] == ["prepare", "prepare", "pretrain"]

    found = result(tmp_path, "teacher")
    assert found["teacher"] == {
        "name": "teacher",
        "model_type": "bert",
        "layers": 4,
        "hidden_size": 16,
        "vocab_size": 150,
    }
    (stage,) = found["sessions"][0]["stages"]
    assert (stage["block_size"], stage["short_block_size"], stage["short_share"]) == (32, 16, 0.75)
    assert stage["cost"]["tokens"] == 8 * 128
    assert found["held_out"].keys() == {"own", "own, 32 tokens", "other", "other, 32 tokens"}
    assert found["held_out"]["own, 32 tokens"]["loss"] == pytest.approx(stage["held_out"]["loss"], rel=1e-5)
    assert found["held_out"]["own"]["loss"] == pytest.approx(stage["held_out"]["short_loss"], rel=1e-5)
    assert found["tokens_per_word"] > 1

    count = len(in_process)
    assert run(teacher.main, [*here, *sizes, *lengths, *prepared, *text, *steps]) == 0
    assert len(in_process) == count, "what was finished ran again"

    recipe = ["--corpus", str(tmp_path / "work" / "blocks-32"), "--layers", "0,3", "--batch_tokens", "128"]
    assert run(students.main, [*here, *recipe, *lengths, *steps]) == 0
    rows = result(tmp_path, "students")["rows"]
    assert list(rows) == ["teacher", "student", "alone", "initialised"]
    assert rows["student"]["cost"]["tokens"] == rows["alone"]["cost"]["tokens"]
    assert rows["student"]["cost"]["flops"] > rows["alone"]["cost"]["flops"]
    assert rows["teacher"]["held_out"]["own"]["loss"] == pytest.approx(found["held_out"]["own"]["loss"], rel=1e-5)
    for name in ("student", "alone"):
        trained = json.loads((tmp_path / "work" / name / "results.json").read_text())["held_out"]
        assert rows[name]["held_out"]["own"]["loss"] == pytest.approx(trained["final"]["short_loss"], rel=1e-5)
        # The third student is what the first two began as.
        first = trained["initial"]["short_loss"]
        assert rows["initialised"]["held_out"]["own"]["loss"] == pytest.approx(first, rel=1e-5)
    assert str(tmp_path) not in json.dumps([found, result(tmp_path, "students")])

    more = tmp_path / "more"
    again = ["--work_dir", str(more), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    going_on = ["--continue_from", str(tmp_path / "work" / "teacher"), "--short_share", "0"]
    assert run(teacher.main, [*again, *sizes, *lengths, *prepared, *text[:2], *steps, *going_on]) == 0
    sessions = result(tmp_path, "teacher")["sessions"]
    assert [session["continued"] for session in sessions] == [False, True]
    assert len(sessions[1]["stages"]) == 1
    start = sessions[1]["stages"][0]["held_out_at_start"]["loss"]
    assert start == pytest.approx(found["held_out"]["own, 32 tokens"]["loss"], rel=1e-5)
    # All four layers and 32 tokens at every step; before, it grew on the way and read 16 at most steps.
    assert 0 < stage["cost"]["flops"] < sessions[1]["stages"][0]["cost"]["flops"]

    # Blocks that are there are not made again, save for a teacher of another vocabulary.
    third = tmp_path / "third"
    third.mkdir()
    (third / "blocks-32").symlink_to(more / "blocks-32", target_is_directory=True)
    there = ["--work_dir", str(third), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    count = len(in_process)
    assert run(teacher.main, [*there, *sizes, *lengths, *prepared, *text[:2], *steps, *going_on]) == 0
    assert [words[0] for words in in_process[count:]] == ["pretrain"]
    going_on = ["--continue_from", str(EMBEDDED)]
    assert run(teacher.main, [*there, *sizes, *lengths, *prepared, *text[:2], *steps, *going_on]) == 1
    assert "prepared with the tokenizer" in capsys.readouterr().err


def test_blocks_that_are_prepared_to_teacher_to_ablation(
    in_process: list[list[str]],
    tmp_path: Path,
    corpus_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
    no_hub: None,
) -> None:
    here = ["--work_dir", str(tmp_path / "work"), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    sizes = ["--layers", "2", "--hidden_size", "16", "--grow", "1,2", "--grow_at", "0.5", "--batch_tokens", "128"]
    steps = ["--use_cpu", "--max_steps", "2", "--max_eval_samples", "2"]
    corpus = ["--corpus", str(corpus_folder)]
    assert run(teacher.main, [*here, *corpus, *sizes, *steps]) == 0
    assert [words[0] for words in in_process] == ["pretrain"]
    found = result(tmp_path, "teacher")
    size = Corpus.open(corpus_folder).train.block_size
    assert found["sessions"][0]["stages"][0]["block_size"] == found["corpus"]["block_size"] == size
    assert found["tokens_per_word"] is None

    scored: dict[str, Any] = {}

    def noting(name: str, place: Any, models: dict[str, Path], suite: list[str], data: Any, **options: Any) -> dict:
        scored.update(models=models, more=place.more, options=options)
        return {"cost": {}}

    monkeypatch.setattr(table4, "scored", noting)
    rows = ["--rows", "no-ce", "random", "--layers", "0", "--teacher_too"]
    limit = ["--task_options", "max_train_samples=9"]
    assert run(table4.main, [*here, *corpus, *rows, *limit, "--batch_tokens", "128", *steps]) == 0
    assert [words[0] for words in in_process] == ["pretrain", *["distill"] * 3]
    assert list(scored["models"]) == ["full", "no-ce", "random", "teacher"]
    assert scored["models"]["teacher"] == tmp_path / "work" / "teacher"
    assert scored["options"] == {"seeds": 5, "learning_rate": 5e-5, "max_train_samples": "9"}
    assert scored["more"] == ()  # those are of the distillations
    ablation = result(tmp_path, "table4")
    assert ablation["teacher"] == found["teacher"]
    assert ablation["sessions"] == found["sessions"]
    start = {name: row["held_out_at_start"]["loss"] for name, row in ablation["rows"].items()}
    assert start["full"] == start["no-ce"] != start["random"]
    assert str(tmp_path) not in json.dumps(ablation)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give either --text to prepare, or --corpus"),
        (["--text", "a.txt", "--corpus", "blocks"], "Give either --text to prepare, or --corpus"),
        (["--corpus", "blocks", "--prepare_options", "num_proc=2"], "--prepare_options are for --text"),
        (["--corpus", "blocks"], "blocks is not a prepared corpus"),
    ],
)
def test_a_teacher_is_of_text_or_of_blocks(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(teacher.main, ["--work_dir", str(tmp_path), "--gpus", "0", *words]) == 1
    assert told in capsys.readouterr().err


def result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "results" / f"{name}.json").read_text())


def test_without_a_teacher_students_are_told_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    here = ["--work_dir", str(tmp_path), "--results_dir", str(tmp_path), "--gpus", "0"]
    assert run(students.main, here) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "run `python -m reproduce.teacher` first" in told


def test_more_gpus_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(students.main, ["--gpus", "99"]) == 1
    assert "--gpus is 99, but" in capsys.readouterr().err
