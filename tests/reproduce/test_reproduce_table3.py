"""Table 3 is what `potstill bench inference` measures, on STS-B one pair at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from inference_samples import Local, small_machine

from potstill.bench.inference import elmo, processes
from reproduce import table3
from reproduce.common import run
from reproduce.render_tables import speed


def test_table_3(
    make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    small_machine(monkeypatch)
    monkeypatch.setattr(processes, "Process", Local)
    monkeypatch.setattr(elmo, "CELLS", 8)
    monkeypatch.setattr(elmo, "PROJECTION", 4)
    (tmp_path / "glue" / "STS-B").mkdir(parents=True)
    rows = "".join(f"bola dome\tkila{' me' * number}\t{number}\n" for number in range(6))
    (tmp_path / "glue" / "STS-B" / "dev.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}")
    models = [f"teacher={make_teacher()}", f"student={make_teacher(num_hidden_layers=2)}"]
    here = ["--work_dir", str(tmp_path / "work"), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    options = ["--models", *models, "--task_data", str(tmp_path / "glue"), "--threads", "1", "--no-compiled"]
    assert run(table3.main, [*here, *options]) == 0

    found = json.loads((tmp_path / "results" / "table3.json").read_text())
    assert (found["pairs"], found["threads"]) == (6, 1)
    assert list(found["rows"]) == ["teacher", "student", "ELMo-shaped"]
    teacher, student, shape = found["rows"].values()
    assert student["encoder_parameters"] < teacher["encoder_parameters"]
    assert student["flops"] < teacher["flops"]
    assert shape["bytes"] is None
    form = student["forms"]["PyTorch, eager"]
    low, high = form["quartiles"]
    assert low <= form["milliseconds"] <= high
    assert len(form["ratio"]) == 3
    assert teacher["forms"]["PyTorch, eager"]["ratio"] is None
    whole = json.loads((tmp_path / "work" / "table3.json").read_text())
    assert whole["rows"][1]["new_head"]
    assert form["seconds_of_a_pass"] == whole["rows"][1]["latency"]["seconds_of_a_pass"]
    assert str(tmp_path) not in json.dumps(found["rows"])
    assert "ELMo's shape, random weights" in speed(found)


def test_a_model_that_was_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--work_dir", str(tmp_path), "--results_dir", str(tmp_path), "--gpus", "0"]
    assert run(table3.main, here) == 1
    assert "There is no folder" in capsys.readouterr().err
