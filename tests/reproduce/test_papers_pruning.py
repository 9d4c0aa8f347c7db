"""The figures of the script on pruning, from the results of its runs."""

import json
from pathlib import Path

import pytest

from reproduce.common import Place
from reproduce.papers import pruning


def write(folder: Path, score: float, heads: list[int] | None = None, **more: object) -> None:
    curve = [
        {"heads": number, "heads_share": number / 10, "neurons": 0, "neurons_share": 0.0, "score": score - number}
        | {"parameters": 100 - number, "layer_parameters": 50 - number}
        for number in heads or []
    ]
    folder.mkdir(parents=True)
    record = {"score": score - (heads or [0])[-1], "pruning": {"curve": curve}, "rows": {"train": 9}}
    (folder / "results.json").write_text(json.dumps(record | {"without_teacher": None} | more))


def test_figures_are_medians_over_the_seeds(tmp_path: Path) -> None:
    for seed, score in ((1, 90.0), (2, 80.0), (3, 91.0)):
        write(tmp_path / f"pruning-sst2-{seed}-whole", score)
        write(tmp_path / f"pruning-sst2-{seed}-curve", score, [0, 3, 9])
        for part in pruning.PARTS:
            write(tmp_path / f"pruning-sst2-{seed}-{part}", score, [0, 5])
            write(tmp_path / f"pruning-sst2-{seed}-{part}-back", score, without_teacher={"score": 70.0 + seed})
    found = pruning._figures(Place(tmp_path, tmp_path, 0), "sst2", range(1, 4))
    assert found["whole"] == {"median": 90.0, "min": 80.0, "max": 91.0, "by_seed": [90.0, 80.0, 91.0]}
    assert [(point["score"], point["lost"]) for point in found["curve"]] == [(90.0, 0.0), (87.0, 3.0), (81.0, 9.0)]
    assert found["largest_share_within_0.5"] == 0.0
    part = found["parts"]["heads-25"]
    assert part["removed"]["heads"] == 5
    assert (part["pruned"]["median"], part["distilled_back"]["median"]) == (85.0, 90.0)
    assert part["tuned_without_teacher"]["median"] == 72.0
    assert (part["parameters"], found["whole_layer_parameters"]) == (95, 50)


def test_without_a_model_or_data_it_says_why_it_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--work_dir", str(tmp_path / "w"), "--results_dir", str(tmp_path / "r")]
    pruning.main(folders)
    assert "left out, because --model names no encoder" in capsys.readouterr().out
    (tmp_path / "glue").mkdir()
    pruning.main([*folders, "--model", "m", "--task_data", str(tmp_path / "glue"), "--gpus", "0"])
    printed = capsys.readouterr().out
    assert "sst2 is left out" in printed
    assert "mrpc is left out" in printed
    assert not (tmp_path / "w").exists()
