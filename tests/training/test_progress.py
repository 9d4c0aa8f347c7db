"""What is printed while a run goes on: first what is trained, then how far it is."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distillation, new_trainer, pretraining
from terminals import Terminal, scrolled
from transformers import TrainerCallback

from potstill import distill, pretrain
from potstill.training.hardware import hardware

CPU = torch.device("cpu")


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_headline_comes_before_everything(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_on_start": True}
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    capsys.readouterr()
    trainer.train()
    lines = lines_of(capsys)
    parameters = sum(p.numel() for p in trainer.student.parameters())
    assert lines[0] == (
        f"distilbert, 2 layers, {parameters:,} parameters ← teacher bert, 4 layers · "
        f"{len(trainer.corpus.train)} blocks of 16 tokens, 8 a step · float32 on {hardware(CPU)}"
    )
    assert [line.split(" · ")[0] for line in lines[1:]] == ["step 0", "step 1/2 (50%)", "step 2/2 (100%)", "step 2"]


def test_precision_is_told(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1, bf16=True)
    new_trainer(args).train()
    assert f" · bf16 on {hardware(CPU)}" in lines_of(capsys)[0]


def test_a_teacher_that_teaches_nothing_is_not_named(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_trainer(
        distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1, alpha_ce=0, alpha_cos=0)
    ).train()
    assert "teacher" not in lines_of(capsys)[0]


def test_each_depth_of_a_growing_model_is_told(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(pretraining(corpus_folder, tmp_path / "model", grow="2,4", max_steps=4, max_train_minutes=60))
    lines = lines_of(capsys)
    assert [line.split(", ")[1] for line in lines if line.startswith("bert, ")] == ["2 layers", "4 layers"]
    steps = [line.split(" · ")[0] for line in lines if " lr " in line]
    assert len(steps) == 4
    for number, step in enumerate(steps, 1):  # with a budget of minutes there is no total of steps
        assert re.fullmatch(rf"step {number} \(\d+%\)", step), step


def test_many_logs_print_few_lines_but_all_are_kept(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_steps": 6, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    trainer.train()
    starts = [line.split(" · ")[0] for line in lines_of(capsys) if line.startswith("step ")]
    assert starts == ["step 1/6 (17%)", "step 3/6 (50%)", "step 3", "step 6/6 (100%)", "step 6"]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_a_terminal_shows_every_step_on_one_line(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, terminal: Terminal
) -> None:
    written = terminal()
    options = {"max_steps": 6, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 6}
    new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options)).train()
    shown = written()
    for number in range(1, 7):
        assert f"step {number}/6 (" in shown
    assert re.search(r"step 3/6 \(50%\) · loss \d+\.\d+ · \d:\d\d left · [\d,]+ tokens/s · ce ", shown)
    starts = [line.split(" · ")[0] for line in scrolled(shown)]
    assert starts == ["distilbert, 2 layers, " + starts[0].split(", ", 2)[2], "step 6/6 (100%)", "step 6"]


def test_a_failure_ends_the_live_line(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, terminal: Terminal
) -> None:
    written = terminal()
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=3))
    before = sys.stderr

    class Fails(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    trainer.add_callback(Fails())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert sys.stderr is before
    assert written().endswith("\x1b[1A\x1b[2K")


def test_a_training_goes_on_if_the_reader_of_its_lines_ends(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=2))
        monkeypatch.undo()
    assert (folder / "model.safetensors").is_file()
