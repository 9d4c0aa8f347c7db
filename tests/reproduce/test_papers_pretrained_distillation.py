"""The data, the figures and the plot of the script on pre-trained distillation."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from potstill.errors import PotstillError
from reproduce.common import Place
from reproduce.papers import pretrained_distillation as script


def write(folder: Path, score: float, parameters: int, *before: float) -> None:
    folder.mkdir()
    stages = [{"score": one, "texts": 7} for one in (*before, score)]
    record = {"score": score, "stages": stages, "rows": {"train": 4, "dev": 5}}
    (folder / "results.json").write_text(json.dumps(record))
    save_file({"weight": np.zeros((parameters, 2)), "bias": np.zeros(parameters)}, folder / "model.safetensors")


def test_figures_are_medians_over_the_seeds(tmp_path: Path) -> None:
    write(tmp_path / f"{script.NAME}-sst2-teacher", 95.0, 10**6)
    for shape, parameters in (("2x128", 100_000), ("4x256", 200_000)):
        for seed in (1, 2, 3):
            for line, score in (("tuned", 80.0), ("distilled", 70.0), ("both", 90.0)):
                before = [88.0 + seed] if line == "both" else []
                write(tmp_path / script._run_name("sst2", line, shape, seed), score + seed, parameters, *before)
    found = script._figures(Place(tmp_path, tmp_path, 0), "sst2", ["2x128", "4x256"], range(1, 4))
    assert (found["teacher"], found["teacher_parameters"], found["texts"]) == (95.0, 3_000_000, 7)
    small = found["shapes"]["2x128"]
    assert small["parameters"] == 300_000
    medians = {line: scores["median"] for line, scores in small["scores"].items()}
    assert medians == {"tuned": 82.0, "distilled": 72.0, "both": 92.0, "before_tuning": 90.0}
    lines = script.as_table(found).splitlines()
    assert lines[2] == "| 2x128 | 0.3 M | 82.0 | 72.0 | 90.0 | 92.0 |"
    assert lines[-1] == "| teacher | 3.0 M | 95.0 |  |  |  |"
    svg = script.plot(found)
    assert svg.startswith("<svg")
    for line in (*script.LINES.values(), "the teacher"):
        assert f"<!-- {line} -->" in svg


def test_every_label_keeps_a_row_and_the_other_texts_lose_theirs(tmp_path: Path) -> None:
    train = [{"text": f"text {number}", "label": "rare" if number == 7 else "usual"} for number in range(40)]
    options = Namespace(labelled=10, texts=20)
    task = script._declared("own", "Own", train, train[:3], options, Place(tmp_path, tmp_path, 0))
    declared = yaml.safe_load(task.read_text())
    labelled, texts = (
        [json.loads(line) for line in (task.parent / name).read_text().splitlines()]
        for name in (declared["train"], "texts.jsonl")
    )
    assert (len(labelled), len(texts)) == (10, 20)
    assert {row["label"] for row in labelled} == {"rare", "usual"}
    assert all(row.keys() == {"text"} for row in texts)
    assert len({row["text"] for row in (*labelled, *texts)}) == 30


def test_what_is_left_out_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--work_dir", str(tmp_path / "w"), "--results_dir", str(tmp_path / "r"), "--gpus", "0"]
    script.main(folders)
    assert "left out, because --model names no encoder" in capsys.readouterr().out
    script.main([*folders, "--model", "m"])
    assert "left out, because --text names no text" in capsys.readouterr().out
    with pytest.raises(PotstillError, match="--shape is 'wide'"):
        script.main([*folders, "--model", "m", "--text", "t", "--shapes", "wide"])
    (tmp_path / "glue").mkdir()
    script.main([*folders, "--model", "m", "--text", "t", "--task_data", str(tmp_path / "glue")])
    printed = capsys.readouterr().out
    assert "sst2 is left out" in printed
    assert "banking77 is left out: --banking77 names no folder" in printed
