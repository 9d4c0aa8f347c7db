"""The figures of the script on limited precision, from the results of its runs."""

import json
from pathlib import Path

import pytest

from reproduce.common import Place
from reproduce.papers import precision


def write(folder: Path, name: str, record: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(record))


def test_what_an_export_loses_is_the_median_over_the_seeds(tmp_path: Path) -> None:
    for seed, (whole, before, after) in enumerate([(80.0, 81.0, 80.5), (82.0, 82.0, 82.5), (84.0, 83.0, 82.75)], 1):
        scores = {"before": {"score": before}, "after": {"score": after}, "agreement": {"same": 0.9 + seed / 100}}
        write(tmp_path / f"precision-sst2-{seed}-int8-int8", "potstill_export.json", {"scores": scores})
        of_whole = {"before": {"score": whole}, "after": {"score": 0.0}, "agreement": {"same": 0.0}}
        write(tmp_path / f"precision-sst2-{seed}-float-int8", "potstill_export.json", {"scores": of_whole})
    found = precision._figures(Place(tmp_path, tmp_path, 0), "sst2", range(1, 4), "int8", "int8")
    assert (found["float32"], found["export"], found["lost"]) == (82.0, 82.5, 0.25)
    assert found["lost_by_seed"] == [0.5, -0.5, 0.25]
    assert found["lost_of_the_float_model"] == -0.5
    assert found["same_answers"] == pytest.approx(0.92)
    line = precision.integers_table({"sst2": [found]}).splitlines()[-1]
    assert "trained on for it" in line
    assert "+0.25 (-0.50 to +0.50)" in line


def test_losses_at_some_steps() -> None:
    curve = [[step, 9.0 - step / 10] for step in range(0, 50, 10)]
    figures = {
        "curves": {"float32": curve, "nearest 8.8": curve},
        "saturated": {"float32": None, "nearest 8.8": {"weights": 0.0, "gradients": 0.0012}},
    }
    lines = precision.fixed_point_table(figures).splitlines()
    assert "step 40" in lines[0]
    assert "5.00" in lines[-1]
    assert "0.12% (gradients)" in lines[-1]


def test_without_data_it_says_why_a_task_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--work_dir", str(tmp_path / "w"), "--results_dir", str(tmp_path / "r"), "--gpus", "0"]
    precision.main([*folders, "--only", "integers"])
    assert "sst2 is left out" in capsys.readouterr().out
    assert not (tmp_path / "w").exists()
