"""The figures and the table of the script on the BiLSTM, from the results of its runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from reproduce.common import Place
from reproduce.papers import bilstm


def write(folder: Path, score: float, **more: Any) -> None:
    folder.mkdir(parents=True)
    record = {"score": score, "metrics": {"accuracy": score}, "rows": {"train": 9}, "seconds": {"training": score}}
    (folder / "results.json").write_text(json.dumps(record | {"steps": 7, "unlabelled": {"texts": 99}} | more))


def test_figures_are_medians_over_the_seeds(tmp_path: Path) -> None:
    write(tmp_path / "bilstm-sst2-teacher", 92.0)
    for seed, score in ((1, 80.0), (2, 70.0), (3, 81.0)):
        for more, what in enumerate(bilstm.ROWS):
            write(tmp_path / f"bilstm-sst2-{what}-{seed}", score + 2 * more)
    found = bilstm._figures(Place(tmp_path, tmp_path, 0), "sst2", range(1, 4))
    alone = found["scores"]["alone"]
    assert (alone["median"], alone["min"], alone["max"], alone["by_seed"]) == (80, 70, 81, [80, 70, 81])
    assert found["gained_over_alone"] == 4
    assert found["texts"] == {"texts": 99}
    model = {"parameters": 19_300_000, "flops": 2e7, "bytes": 8e7, "milliseconds": 1.234, "scores": {"score": 90.04}}
    figures = {"tasks": {"sst2": found}, "latency": {"task": "sst2", "models": {"BiLSTM, onnx": model}}}
    assert bilstm.table(figures).splitlines() == [
        "| | SST-2 |",
        "|---|--:|",
        "| teacher | 92.0 |",
        "| BiLSTM alone | 80.0 (70.0–81.0) |",
        "| taught | 82.0 (72.0–83.0) |",
        "| taught with synthetic texts | 84.0 (74.0–85.0) |",
        "| synthetic texts and teacher against alone | +4.0 |",
        "",
        "| | parameters | MFLOPs | MB | milliseconds | SST-2 |",
        "|---|--:|--:|--:|--:|--:|",
        "| BiLSTM, onnx | 19.3 M | 20.0 | 80.0 | 1.23 | 90.0 |",
    ]


def test_without_a_model_or_data_it_says_why_it_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--work_dir", str(tmp_path / "w"), "--results_dir", str(tmp_path / "r")]
    bilstm.main(folders)
    assert "left out, because --model names no encoder" in capsys.readouterr().out
    (tmp_path / "glue").mkdir()
    bilstm.main([*folders, "--model", "m", "--task_data", str(tmp_path / "glue"), "--gpus", "0"])
    assert "sst2 is left out" in capsys.readouterr().out
