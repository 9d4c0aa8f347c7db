"""The leader board: what counts as reached, which boards stay, and a whole one, tiny."""

import json
from pathlib import Path
from typing import Any

import pytest

from reproduce import leader_board
from reproduce.common import run
from reproduce.leader_board import REFERENCE, reached
from reproduce.render import section


def row(*runs: tuple[float, float]) -> dict[str, Any]:
    return {"held_out": [{"own": {"loss": loss, "kl": kl}} for loss, kl in runs]}


def test_an_entry_counts_if_loss_and_kl_are_no_worse() -> None:
    rows = {
        REFERENCE: row((2.0, 0.10), (2.1, 0.12)),
        "both": row((2.1, 0.12)),
        "worse loss": row((2.11, 0.1)),
        "worse KL": row((1.9, 0.13)),
        "median": row((2.0, 0.1), (2.05, 0.11), (9.0, 9.0)),
    }
    assert reached(rows) == {REFERENCE: True, "both": True, "worse loss": False, "worse KL": False, "median": True}


def test_a_board_from_trainings(
    in_process: list[list[str]],
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    signals_restored: None,
    no_hub: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "quick.yaml"
    minutes = "max_train_minutes: 0.1\n"  # as recipes/fast.yaml has it; the minutes of the entry count
    recipe.write_text(f"soft_targets: sampled\nlearning_rate: 2e-3\nper_device_train_batch_size: 4\n{minutes}")
    here = ["--work_dir", str(tmp_path / "work"), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    where = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), "--layers", "0,3"]
    lengths = ["--batch_tokens", "128", "--short_block_size", "8", "--short_share", "0.5"]
    command = [*here, *where, *lengths, "--entries", f"{recipe}@4.5", "--use_cpu", "--max_steps", "3"]
    assert run(leader_board.main, command) == 0
    assert [words[0] for words in in_process] == ["distill", "distill"]
    [board] = json.loads((tmp_path / "results" / "leader_board.json").read_text())["boards"]
    assert board["rows"].keys() == {REFERENCE, "quick, 4.5 min"}
    assert board["rows"]["quick, 4.5 min"]["recipe"]["soft_targets"] == "sampled"
    assert board["rows"][REFERENCE]["recipe"]["soft_targets"] == "all"
    assert board["teacher_held_out"]["own"]["kl"] == pytest.approx(0, abs=1e-6)
    written = section(tmp_path / "results")
    assert "| quick, 4.5 min | 4.5 |" in written

    other = board | {"conditions": board["conditions"] | {"date": "2030-01-02"}}
    (tmp_path / "results" / "leader_board.json").write_text(json.dumps({"format_version": 1, "boards": [board, other]}))
    assert run(leader_board.main, command) == 0
    assert len(in_process) == 2  # finished runs are not repeated
    tunings: list[dict[str, Any]] = []
    monkeypatch.setattr(leader_board, "check_tasks", lambda *given: None)
    monkeypatch.setattr(leader_board, "scored", lambda *given, **options: tunings.append(options))
    for rate in (["--search"], ["--tuning_rate", "2e-5"]):
        tasks = ["--task_data", str(tmp_path), *rate, "--task_options", "runs_per_gpu=5"]
        assert run(leader_board.main, [*command, *tasks]) == 0
    common = {"seeds": 3, "runs_per_gpu": "5"}
    assert tunings == [common | {"search": True}, common | {"learning_rate": 2e-5}]
    again = json.loads((tmp_path / "results" / "leader_board.json").read_text())["boards"]
    assert [one["conditions"]["date"] for one in again] == [board["conditions"]["date"], "2030-01-02"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["quick.yaml"], "is not FILE@MINUTES"),
        (["quick.yaml@0"], "is not FILE@MINUTES"),
        (["quick.yaml@1", "quick.yaml@1.0"], "two entries quick, 1 min"),
        (["named.yaml@1"], "names teacher, which is the same for all entries"),
    ],
)
def test_entries_that_are_not_valid(
    entries: list[str],
    message: str,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text("learning_rate: 2e-3\n")
    Path("named.yaml").write_text("teacher: other\n")
    where = ["--work_dir", "work", "--results_dir", "results", "--gpus", "0", "--teacher", str(teacher_folder)]
    where += ["--corpus", str(corpus_folder), "--layers", "0,3", "--short_share", "0"]
    assert run(leader_board.main, [*where, "--entries", *entries]) == 1
    assert message in capsys.readouterr().err
