"""Distilling into narrower students, and into students whose shape follows from a budget."""

import json
from pathlib import Path

import pytest
import yaml
from runs import distillation
from transformers import AutoModelForMaskedLM

from potstill import DistillationArguments, PotstillError, distill
from potstill.cli import main

PROJECTED = {"soft_targets": 5, "masked_lm": 2, "hidden_mse": 1}
MEASURED = {"eval_strategy": "steps", "eval_on_start": True, "max_steps": 12, "save_strategy": "no"}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("narrow_by", ["importance", "random"])
def test_a_narrow_student_learns(teacher_folder: Path, corpus_folder: Path, tmp_path: Path, narrow_by: str) -> None:
    options = {"hidden_size": 16, "narrow_by": narrow_by, "losses": PROJECTED}
    folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **MEASURED, **options))
    found = results(folder)
    assert found["held_out"]["final"]["loss"] < found["held_out"]["initial"]["loss"] - 0.05
    student = AutoModelForMaskedLM.from_pretrained(folder)
    assert (student.config.dim, student.config.n_heads, student.config.hidden_dim) == (16, 1, 32)
    assert found["sizes"]["student"] == {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 32}
    card = " ".join((folder / "README.md").read_text().split())
    how = "chosen at random" if narrow_by == "random" else "the most important ones"
    assert "16 of 32 dimensions of the hidden states, 1 of 2 attention heads of each layer" in card
    assert how in card
    assert "same embeddings as in the teacher" not in card  # LayerNorm is over fewer dimensions
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["hidden_size"] == 16


def test_the_cosine_refuses_and_says_what_mends_it(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--teacher", str(teacher_folder), "--corpus", str(corpus_folder), "--use_cpu"]
    command += ["--hidden_size", "16", "--max_steps", "1", "--save_strategy", "no"]
    assert main([*command, "--output_dir", str(tmp_path / "refused")]) == 1
    said = capsys.readouterr().err
    assert "the teacher's are 32 wide and the student's 16: give --alpha_cos 0" in said
    assert not (tmp_path / "refused").exists()
    advised = said.split("--losses '")[1].split("'")[0]
    for name, mend in (("without", ["--alpha_cos", "0"]), ("projected", ["--losses", advised])):
        assert main([*command, *mend, "--output_dir", str(tmp_path / name)]) == 0
    logged = results(tmp_path / "projected")["log_history"]
    assert any("loss_hidden_mse" in entry for entry in logged)


@pytest.mark.parametrize(("budget", "most"), [("40kB", 40_000), ("9K", 9_000), ("2.5x", None)])
def test_a_budget_is_kept_to(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    budget: str,
    most: int | None,
) -> None:
    args = distillation(
        teacher_folder, corpus_folder, tmp_path / "student", max_steps=1, max_size=budget, alpha_cos=0.0
    )
    folder = distill(args)
    said = capsys.readouterr().err
    assert said.startswith(f"--max_size {budget}: ")  # before anything is trained
    size = (folder / "model.safetensors").stat().st_size
    found = results(folder)["max_size"]
    assert found["file_bytes"] == size == pytest.approx(found["estimate"]["file_bytes"], rel=0.01)
    assert found["estimate"]["parameters"] == results(folder)["parameters"]
    assert "weights on disk: " in said.splitlines()[-1]
    if most is None:
        assert found["estimate"]["speed_up"] >= 2.5
    else:
        assert (size if budget.endswith("B") else found["estimate"]["parameters"]) <= most
    card = (folder / "README.md").read_text()
    assert f"Depth and width were chosen to keep to `{budget}`. The weights have {size:,} bytes on disk" in card


def test_a_budget_too_small_writes_nothing(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_size="2kB")
    with pytest.raises(PotstillError, match="smallest one of this teacher has 1 layer, 16 wide"):
        distill(args)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "--hidden_size is 0: it must be above 0"),
        ({"intermediate_size": -1}, "--intermediate_size is -1"),
        ({"max_size": "small"}, "--max_size is 'small': give a size on disk such as 50MB"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **options)
