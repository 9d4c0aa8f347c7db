"""Trainings by losses that a recipe names: projections learn, survive an interruption, and stay out of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import assert_same_tensors, checkpoints, distillation, new_trainer, send_signal_in_step, tensors
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from potstill import DistillationTrainer, PotstillError, distill
from potstill.cli import main
from potstill.objective import HiddenMSE, MaskedLM, Objective
from potstill.student import load_masked_lm
from potstill.training.control import TrainingInterrupted

BRIDGES = {
    "masked_lm": 1,
    "hidden_mse": {"layers": {0: 1, -1: 3}},
    "attention_relations": {"teacher_layer": 2, "relation_heads": 8},
}


@pytest.fixture(scope="module")
def narrow(make_teacher: Callable[..., Path]) -> Path:
    """A student of another width, depth and number of heads than the teacher's, with dropout."""
    return make_teacher(seed=3, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)


def narrow_trainer(narrow: Path, teacher: Path, corpus: Path, folder: Path, **options: Any) -> DistillationTrainer:
    args = distillation(teacher, corpus, folder, **({"losses": BRIDGES} | options))
    return DistillationTrainer(load_masked_lm(str(narrow)), str(corpus), args, str(teacher))


def trained_tensors(trainer: DistillationTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.step.state_dict().items()}


def test_a_student_of_another_width_learns_through_projections_and_resumes_exactly(
    narrow: Path,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
) -> None:
    whole = narrow_trainer(narrow, teacher_folder, corpus_folder, tmp_path / "whole")
    before = trained_tensors(whole)
    whole.train()
    logged = [entry for entry in whole.state.log_history if "loss" in entry]
    assert logged[0].keys() >= {"loss_mlm", "loss_hidden_mse", "loss_attention_relations"}
    for loss in ("loss_hidden_mse", "loss_attention_relations"):
        assert logged[-1][loss] < 0.9 * logged[0][loss]
    names = {name for name in before if name.startswith("objective_modules.")}
    assert len(names) == 4
    assert all(not torch.equal(whole.step.state_dict()[name], before[name]) for name in names)

    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 7, 1)
        with pytest.raises(TrainingInterrupted):
            narrow_trainer(narrow, teacher_folder, corpus_folder, tmp_path / "cut").train()
    checkpoint = tmp_path / "cut" / "checkpoint-7"
    saved = load_file(checkpoint / "objective.safetensors")
    assert {f"objective_modules.{name}" for name in saved} == names
    resumed = narrow_trainer(narrow, teacher_folder, corpus_folder, tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert_same_tensors(trained_tensors(resumed), trained_tensors(whole))

    # The model is saved without them, and is one that anybody can load.
    resumed.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "objective.safetensors").exists()
    assert not [name for name in tensors(tmp_path / "model") if "objective" in name]
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "model").config.hidden_size == 24

    # Other losses have other projections, or none.
    for losses in ({"masked_lm": 1}, {"masked_lm": 1, "hidden_mse": 1}):
        other = narrow_trainer(narrow, teacher_folder, corpus_folder, tmp_path / "cut", losses=losses, max_steps=30)
        with pytest.raises(PotstillError, match="--losses was"):
            other.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.usefixtures("signals_restored")
def test_the_verb_writes_a_recipe_that_reruns_it(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    losses = {"soft_targets": {"weight": 2.0, "divergence": "jensen_shannon"}, "hidden_mse": {"layers": {0: 1, 1: 3}}}
    options = {"max_steps": 2, "gradient_accumulation_steps": 1}
    first = distill(distillation(teacher_folder, corpus_folder, tmp_path / "first", losses=losses, **options))
    assert not (first / "objective.safetensors").exists()
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    assert recipe["losses"] == losses
    assert not {"alpha_ce", "alpha_mlm", "alpha_cos", "temperature", "soft_targets"} & recipe.keys()
    again = ["distill", "--config", str(first / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert_same_tensors(tensors(tmp_path / "again"), tensors(first))


def test_an_objective_from_python(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    def trainer(name: str, objective: Objective | None, **options: Any) -> DistillationTrainer:
        args = distillation(teacher_folder, corpus_folder, tmp_path / name, max_steps=2, save_strategy="no", **options)
        model = new_trainer(args).student if objective is None else load_masked_lm(str(teacher_folder))
        return DistillationTrainer(model, str(corpus_folder), args, str(teacher_folder), objective=objective)

    objective = Objective([MaskedLM(), HiddenMSE(weight=2.0, layers={0: 3})])
    trained = trainer("one", objective)
    assert trained.step.objective is objective
    trained.train()
    assert trained.state.log_history[0].keys() >= {"loss_mlm", "loss_hidden_mse"}
    with pytest.raises(PotstillError, match="an objective are both given"):
        trainer("two", objective, losses={"masked_lm": 1})


def test_losses_that_do_not_fit_the_models_are_told_before_training(
    narrow: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    for losses, told in (
        ({"hidden_cosine": 1}, "hidden_mse, which learns a projection"),
        ({"hidden_mse": {"layers": {2: 0}}}, "layers of hidden_mse names layer 2 of the student, which has 2 layers"),
        ({"attention_relations": {"teacher_layer": 4}}, "teacher_layer of attention_relations names layer 4"),
        ({"attention_relations": {"relation_heads": 16}}, "do not divide the student's width of 24"),
    ):
        with pytest.raises(PotstillError, match=told):
            narrow_trainer(narrow, teacher_folder, corpus_folder, tmp_path / "student", losses=losses)
    assert not (tmp_path / "student").exists()


NARROW = """
import sys
from potstill import DistillationArguments, DistillationTrainer
from potstill.student import load_masked_lm

student, teacher, corpus, folder, losses = sys.argv[1:]
args = DistillationArguments(
    teacher=teacher, corpus=corpus, output_dir=folder, losses=losses, max_steps=6, per_device_train_batch_size=2,
    gradient_accumulation_steps=2, eval_strategy="no", eval_on_start=False, use_cpu=True, learning_rate=1e-3,
)
trainer = DistillationTrainer(load_masked_lm(student), corpus, args, teacher)
trainer.train()
"""


@pytest.mark.slow
def test_two_processes_train_the_same_projections_as_one(
    make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    """Without a loss that reads logits, the head has no gradient, nor has what is above the layers that are read."""
    losses = {"hidden_mse": {"layers": {0: 1}}, "attention_relations": {"teacher_layer": 2, "relation_heads": 8}}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = make_teacher(**still)
    student = tmp_path / "narrow"
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = load_masked_lm(str(teacher)).config.to_dict() | sizes
    BertForMaskedLM(BertConfig(**config)).save_pretrained(student)
    script = tmp_path / "train.py"
    script.write_text(NARROW)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    arguments = [str(student), str(teacher), str(corpus_folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, *arguments, str(tmp_path / "two"), json.dumps(losses)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    args = distillation(
        teacher,
        corpus_folder,
        tmp_path / "one",
        losses=losses,
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
    )
    one = DistillationTrainer(load_masked_lm(str(student)), str(corpus_folder), args, str(teacher))
    one.train()
    assert checkpoints(tmp_path / "two") == checkpoints(tmp_path / "one") == ["checkpoint-6"]
    for file in ("model.safetensors", "objective.safetensors"):
        ours, theirs = (load_file(tmp_path / name / "checkpoint-6" / file) for name in ("one", "two"))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], atol=2e-4, rtol=0, msg=name)
