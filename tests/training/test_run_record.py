"""A resumed run is the same run: what may not change is refused by name, what may change is used and recorded."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import assert_same_tensors, distillation, new_trainer, pretraining, tensors
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill import DistillationArguments, PotstillError, PretrainingArguments, distill, prepare
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.training import run_record
from potstill.training.run_record import MAY_CHANGE, RunRecord, own_defaults, weights_hash

STEPS = 6


@pytest.fixture(scope="module")
def half_done(teacher_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that has ended after the third."""
    folder = tmp_path_factory.mktemp("half") / "student"
    distill(distillation(teacher_folder, corpus_folder, folder, max_steps=STEPS, save_steps=3))
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    return folder


@pytest.fixture
def resumed(half_done: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Go on with a copy of the run, with other options."""

    def resume(**options: Any) -> Path:
        folder = tmp_path / "student"
        shutil.copytree(half_done, folder)
        base = {"max_steps": STEPS, "save_steps": 3, "resume_from_checkpoint": "true"}
        teacher, corpus = options.pop("teacher", teacher_folder), options.pop("corpus", corpus_folder)
        return distill(distillation(teacher, corpus, folder, **(base | options)))

    return resume


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha_ce", 1.0),
        ("temperature", 3.0),
        ("soft_targets", "masked"),
        ("seed", 7),
        ("data_seed", 7),
        ("masking", "uniform"),
        ("mlm_probability", 0.3),
        ("layers", "first"),
        ("fold_token_types", False),
        ("optim", "sgd"),
    ],
)
def test_what_may_not_change_is_refused_by_name(resumed: Callable[..., Path], name: str, value: object) -> None:
    with pytest.raises(PotstillError, match=rf"--{name} was .* and is {value}"):
        resumed(**{name: value})


def test_an_option_that_the_checkpoint_does_not_know_had_its_default() -> None:
    """It was written before the option came."""
    record = RunRecord({"soft_targets": "masked"}, 8, {}, 1)
    now = dataclasses.replace(record, options=record.options | {"hidden_cosine": "masked"})
    defaults = own_defaults(DistillationArguments)
    with pytest.raises(PotstillError, match="--hidden_cosine was all and is masked"):
        now.resumed(record, 1, "there", defaults)
    now.options["hidden_cosine"] = "all"
    assert now.resumed(record, 1, "there", defaults).changes == ()


def test_another_batch_is_refused_but_may_be_cut_otherwise(resumed: Callable[..., Path]) -> None:
    with pytest.raises(PotstillError, match="a step took 8 rows and would now take 4"):
        resumed(gradient_accumulation_steps=2)


def test_a_batch_may_be_cut_otherwise(resumed: Callable[..., Path]) -> None:
    folder = resumed(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert json.loads((folder / "results.json").read_text())["cost"]["steps"] == STEPS


def test_another_teacher_is_refused(resumed: Callable[..., Path], make_teacher: Callable[..., Path]) -> None:
    with pytest.raises(PotstillError, match="the teacher is not the one that the run began with"):
        resumed(teacher=make_teacher(seed=1))


def test_the_teacher_may_lie_elsewhere(resumed: Callable[..., Path], teacher_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_folder, tmp_path / "moved")
    resumed(teacher=tmp_path / "moved")


def test_another_corpus_is_refused(
    resumed: Callable[..., Path], teacher_folder: Path, text_path: Path, tmp_path: Path
) -> None:
    lines = text_path.read_text().splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines[::-1]))
    corpus = prepare([str(other)], str(tmp_path / "corpus"), str(teacher_folder), block_size=32)
    with pytest.raises(PotstillError, match="the corpus is not the one that the run began with"):
        resumed(corpus=corpus.folder)


class RateOfStep(TrainerCallback):
    """Notes the learning rate and the other options that each step is made with."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Any]] = {}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        group = kwargs["optimizer"].param_groups[0]
        self.seen[state.global_step + 1] = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}


def rates(args: DistillationArguments, resume: bool = False) -> dict[int, dict[str, Any]]:
    noted = RateOfStep()
    new_trainer(args, [noted]).train(resume_from_checkpoint=resume)
    return noted.seen


def test_other_options_of_the_optimiser_are_used_and_recorded(
    half_done: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    changed = {"learning_rate": 1e-4, "weight_decay": 0.1, "adam_beta2": 0.9, "adam_epsilon": 1e-5, "warmup_steps": 0.5}
    plain = distillation(teacher_folder, corpus_folder, tmp_path / "plain", max_steps=STEPS, save_steps=3, **changed)
    wanted = rates(plain)

    folder = tmp_path / "student"
    shutil.copytree(half_done, folder)
    args = distillation(teacher_folder, corpus_folder, folder, max_steps=STEPS, save_steps=3, **changed)
    seen = rates(args, resume=True)
    assert sorted(seen) == [4, 5, 6]
    assert seen == {step: wanted[step] for step in seen}

    shutil.rmtree(folder)
    shutil.copytree(half_done, folder)
    distill(dataclasses.replace(args, resume_from_checkpoint="true"))
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["learning_rate"] == 1e-4
    (change,) = json.loads((folder / "results.json").read_text())["changed_on_resume"]
    assert change["step"] == 3
    assert change["learning_rate"] == [3e-3, 1e-4]
    assert change.keys() == {"step", *changed}
    assert "`learning_rate` was `0.003` until step 3" in (folder / "README.md").read_text()


def test_how_often_things_are_done_may_change(resumed: Callable[..., Path]) -> None:
    folder = resumed(save_steps=1, logging_steps=3, save_total_limit=9)
    assert {"checkpoint-4", "checkpoint-5", "checkpoint-6"} <= {path.name for path in folder.iterdir()}
    history = json.loads((folder / "results.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry and entry["step"] > 3] == [6]


def test_a_longer_run(resumed: Callable[..., Path]) -> None:
    folder = resumed(max_steps=8)
    assert json.loads((folder / "results.json").read_text())["cost"]["steps"] == 8


def test_a_checkpoint_of_an_earlier_version_is_taken_and_told(
    half_done: Path,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(half_done, folder)
    checkpoint = folder / "checkpoint-3"
    state = json.loads((checkpoint / "potstill_state.json").read_text())
    old = {name: state[name] for name in ("elapsed_seconds", "progress")} | {"stood_still_seconds": 0.0}
    (checkpoint / "potstill_state.json").write_text(json.dumps(old))
    (checkpoint / "SHA256SUMS").unlink()
    options = {"max_steps": STEPS, "save_steps": 3, "resume_from_checkpoint": "true"}
    distill(distillation(teacher_folder, corpus_folder, folder, **options))
    assert "of an earlier version" in capsys.readouterr().err
    assert_same_tensors(tensors(folder), tensors(half_done))


def test_every_option_is_decided() -> None:
    names = {
        field.name
        for kind in (DistillationArguments, PretrainingArguments, FinetuneArguments)
        for field in dataclasses.fields(kind)
    }
    # Older and newer versions of transformers lack these.
    some_lack = {"logging_dir", "bf16_full_eval", "fp16_full_eval"}
    some_lack |= {"activation_checkpointing", "activation_checkpointing_kwargs"}
    assert not MAY_CHANGE - names - some_lack
    groups = [run_record.PLACES, run_record.LENGTH, run_record.OPTIMISER, run_record.BATCH, run_record.HARDWARE]
    groups += [run_record.LOGGING, run_record.EVALUATION, run_record.SAVING, run_record.FAULTS, run_record.NAMES]
    assert sum(map(len, groups)) == len(MAY_CHANGE)  # no option is in two of them


def test_an_option_that_is_not_listed_is_recorded(corpus_folder: Path, tmp_path: Path) -> None:
    record = RunRecord.of(pretraining(corpus_folder, tmp_path), {})
    assert {"hidden_size", "num_hidden_layers", "grow", "seed", "optim", "learning_rate"} <= record.options.keys()
    assert not {"output_dir", "logging_steps", "bf16", "corpus"} & record.options.keys()
    json.dumps(vars(record))


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"teacher": "a"}, {}, "the run began with a teacher, but now there is none"),
        ({}, {"teacher": "a"}, "the run began without a teacher, but now there is one"),
        ({"teacher": "a"}, {"teacher": "b"}, "the teacher is not the one that the run began with"),
    ],
)
def test_what_is_read_may_neither_go_nor_come_nor_change(
    before: dict[str, str], now: dict[str, str], told: str
) -> None:
    def record(fingerprints: dict[str, str]) -> RunRecord:
        return RunRecord({}, 8, {"training data": "d"} | fingerprints, 1)

    with pytest.raises(PotstillError, match=told):
        record(now).resumed(record(before), 3, "checkpoint-3", {})
    assert record(before).resumed(record(before), 3, "checkpoint-3", {}) == record(before)


def test_the_hash_of_weights_sees_names_shapes_and_values() -> None:
    def hashed(weight: torch.Tensor) -> str:
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight)
        return weights_hash(module)

    weight = torch.randn(4, 6)
    assert hashed(weight) == hashed(weight.clone())
    other = weight.clone()
    other[3, 5] = torch.nextafter(other[3, 5], torch.tensor(9.0))
    assert len({hashed(weight), hashed(other), hashed(weight.reshape(6, 4)), hashed(weight.bfloat16())}) == 4


def test_a_schedule_that_takes_no_change_is_named_as_the_user_writes_it(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1))
    changed = {"max_steps": 2, "lr_scheduler_type": "reduce_lr_on_plateau", "resume_from_checkpoint": "true"}
    changed |= {"eval_strategy": "steps", "eval_steps": 1, "overwrite_output_dir": True}
    told = r"With --lr_scheduler_type reduce_lr_on_plateau no option .*, but --lr_scheduler_type, --max_steps did: give"
    with pytest.raises(PotstillError, match=told):
        distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **changed))
