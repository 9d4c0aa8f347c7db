"""An interrupted and resumed fine-tuning ends with the very weights and scores of an uninterrupted one."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning_samples import WORDS, finetuned, flags, results
from safetensors.torch import load_file

from potstill.cli import main
from potstill.finetuning import finetune as verb
from potstill.finetuning.trainer import FinetuneTrainer


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, only_without_teacher: bool = False) -> None:
    """Have the process signalled in that step."""
    compute_loss = FinetuneTrainer.compute_loss
    sent = False

    def signalled(self: FinetuneTrainer, *args: Any, **options: Any) -> Any:
        nonlocal sent
        if self.state.global_step + 1 == step and not sent and not (only_without_teacher and self.args.teacher):
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *args, **options)

    monkeypatch.setattr(FinetuneTrainer, "compute_loss", signalled)


def assert_same(ours: Path, theirs: Path) -> None:
    mine, other = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
    for name in ("score", "metrics", "steps", "without_teacher"):
        mine_, other_ = results(ours)[name], results(theirs)[name]
        if name == "without_teacher" and other_:
            mine_, other_ = mine_["metrics"], other_["metrics"]
        assert mine_ == other_, name


CASES: dict[str, dict[str, Any]] = {
    "plain": {"task": "sst2"},
    "accumulated": {"task": "sst2", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "taught": {"task": "sst2", "teacher": "sst2", "alpha_cos": 0.5},
    "several": {"task": "sst2", "teacher": "sst2", "teacher_heads": "separate"},
    "unlabelled": {"task": "sst2", "teacher": "sst2", "unlabelled": "texts", "unlabelled_ratio": 0.4},
    "frozen": {"task": "sst2", "freeze_encoder": True},
    "spans": {"task": "squad", "max_eval_samples": 2, "per_device_train_batch_size": 6},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed(
    bert: Path,
    teacher: Path,
    glue: Path,
    squad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    options = {"model": bert, "task_data": squad if case == "spans" else glue} | CASES[case]
    if "teacher" in options:
        options["teacher"] = teacher
    if "teacher_heads" in options:
        options["teacher"] = [teacher, shutil.copytree(teacher, tmp_path / "second")]
    if "unlabelled" in options:
        options["unlabelled"] = tmp_path / "texts.txt"
        options["unlabelled"].write_text("".join(f"{word} bol do\n" for word in WORDS))
        options |= {"without_unlabelled_too": False, "max_train_samples": 20}
    whole = tmp_path / "whole"
    assert finetuned(**options, output_dir=whole)["steps"] == 8
    for step in (3, 4):  # in the middle of the first epoch, and at its end
        broken = tmp_path / f"broken-{step}"
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            assert main(flags(**options, output_dir=broken)) == 128 + signal.SIGTERM
        assert sorted(path.name for path in broken.iterdir()) == [f"checkpoint-{step}", "recipe.yaml"]
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == (
            f"potstill finetune: Interrupted at step {step}; nothing is lost: resume with --resume_from_checkpoint "
            f"{broken / f'checkpoint-{step}'}"
        )
        recipe = ["--config", str(broken / "recipe.yaml"), "--output_dir", str(broken)]
        assert main(["finetune", *recipe, "--resume_from_checkpoint", "true"]) == 0
        assert_same(broken, whole)


def test_the_teacher_may_not_be_left_out_and_a_changed_option_is_recorded(
    bert: Path,
    teacher: Path,
    glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"model": bert, "task": "sst2", "task_data": glue, "output_dir": out}
    taught = {"teacher": teacher, "without_teacher_too": False}
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert main(flags(**options, **taught)) == 128 + signal.SIGTERM
    assert main(flags(**options, resume_from_checkpoint="true")) == 1
    assert "the run began with a teacher, but now there is none" in capsys.readouterr().err
    assert main(flags(**options, **taught, resume_from_checkpoint="true", learning_rate=5e-4)) == 0
    assert results(out)["changed_on_resume"] == [{"step": 3, "learning_rate": [1e-3, 5e-4]}]
    assert "`learning_rate` was `0.001` until step 3" in (out / "README.md").read_text()


def test_interrupted_in_the_run_without_the_teacher(
    bert: Path, teacher: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    interrupt(monkeypatch, 3, only_without_teacher=True)
    status = main(flags(model=bert, teacher=teacher, task="sst2", task_data=glue, output_dir=out))
    assert status == 128 + signal.SIGTERM
    assert f"the run with the teacher is complete in {out}." in capsys.readouterr().err
    assert results(out)["without_teacher"] is None
    assert [path for path in out.iterdir() if path.is_dir()] == []


def test_a_full_disk_leaves_no_half_model(
    bert: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def full(*args: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verb, "task_card", full)
    assert main(flags(model=bert, task="sst2", task_data=glue, output_dir=out, max_steps=1)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(out.iterdir()) == []
