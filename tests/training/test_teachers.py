"""Several teachers, from the command line to the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import assert_same_tensors, distillation, learned, tensors
from transformers import BertTokenizer

from potstill import DistillationArguments, DistillationTrainer, PotstillError, build_student, distill
from potstill.cli import main
from potstill.corpus import Corpus, Masking, load_tokenizer
from potstill.corpus.tokenizer import control_ids
from potstill.objective import Ensemble, Mean
from potstill.student import load_masked_lm
from potstill.training.checkpoints import write_checksums
from potstill.training.evaluation import held_out_metrics

QUICK: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def teachers(teacher_folder: Path, make_teacher: Callable[..., Path]) -> list[str]:
    """Three, of two depths."""
    return [str(teacher_folder), str(make_teacher(seed=1)), str(make_teacher(seed=2, num_hidden_layers=2))]


@pytest.fixture(scope="module")
def two(teachers: list[str], corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with two teachers and a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("two") / "student"
    options = QUICK | {"eval_on_start": True, "teacher_weights": [3.0, 1.0]}
    return distill(run_of(teachers[:2], corpus_folder, folder, **options))


def run_of(teachers: list[str], corpus: Path, folder: Path, **options: Any) -> DistillationArguments:
    return distillation(teachers, corpus, folder, **(QUICK | options))


def test_the_results_say_what_each_teacher_is_and_takes(two: Path, teachers: list[str]) -> None:
    results = json.loads((two / "results.json").read_text())
    found = results["teachers"]
    assert [(one["name"], one["weight"]) for one in found] == [(teachers[0], 0.75), (teachers[1], 0.25)]
    assert all(one["seconds"] > 0 for one in found)
    assert 0.02 < sum(one["share"] for one in found) < 1
    final = results["held_out"]["final"]
    assert {"teacher_loss", "teacher_1_loss", "teacher_2_loss", "teacher_2_accuracy", "cosine"} <= final.keys()
    assert "teacher_3_loss" not in final
    recipe = yaml.safe_load((two / "recipe.yaml").read_text())
    assert recipe["teacher"] == teachers[:2]
    assert recipe["teacher_weights"] == [3.0, 1.0]
    assert recipe["teacher_mean"] == "probabilities"
    card = (two / "README.md").read_text()
    assert "# A student of teacher and teacher" in card
    assert "## Teachers" in card
    assert f"| teacher | 0.250 | {final['teacher_2_loss']:.3f} |" in card
    assert "mean of the teachers" in card


def test_the_recipe_of_one_teacher_says_nothing_of_several(
    teachers: list[str], corpus_folder: Path, tmp_path: Path
) -> None:
    folder = distill(run_of(teachers[:1], corpus_folder, tmp_path / "student", max_steps=1))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["teacher"] == teachers[0]
    assert not {"teacher_weights", "teacher_mean"} & recipe.keys()
    results = json.loads((folder / "results.json").read_text())
    assert "teachers" not in results
    assert "teacher_1_loss" not in results["held_out"]["final"]
    assert "## Teachers" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_a_resumed_run_is_the_same_run(mean: str, teachers: list[str], corpus_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    losses = {"soft_targets": 5, "masked_lm": 2, "hidden_mse": 1, "logits_mse": 0.1}
    options = {"losses": losses, "teacher_mean": mean}
    whole = tensors(distill(run_of(teachers, corpus_folder, folder, **options)))
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "model.safetensors").unlink()
    resumed = distill(run_of(teachers, corpus_folder, folder, resume_from_checkpoint="true", **options))
    assert_same_tensors(tensors(resumed), whole)


def test_two_equal_teachers_teach_as_one_does_alone(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    name = str(teacher_without_dropout)
    copy = str(shutil.copytree(name, tmp_path / "copy"))
    alone = learned(distill(run_of([name], corpus_folder, tmp_path / "one", max_steps=2)))
    twice = learned(
        distill(run_of([name, copy], corpus_folder, tmp_path / "twice", max_steps=2, teacher_weights=[1, 5]))
    )
    for mine, other in zip(twice[1].values(), alone[1].values(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=0)


@pytest.mark.parametrize("again", ["{0}", "{0}/", "{0}/../teacher"])
def test_one_teacher_named_twice_is_refused(
    again: str, teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--corpus", str(corpus_folder), "--output_dir", str(tmp_path / "student"), "--use_cpu"]
    assert main(["distill", "--teacher", str(teacher_folder), again.format(teacher_folder), *where]) == 1
    printed = capsys.readouterr().err
    assert f"names '{teacher_folder}' twice: name it once, and let it count for more with --teacher_weights" in printed
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ((0, 2), "the 2nd teacher is not the one that the run began with"),
        ((1, 0), "the 2nd teacher is not the one"),
        ((0, 1, 2), "the run began without a 3rd teacher, but now there is one"),
        ((0,), "the run began with a 2nd teacher, but now there is none"),
    ],
)
def test_other_teachers_are_refused(
    now: tuple[int, ...], told: str, two: Path, teachers: list[str], corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(two, folder)
    shutil.rmtree(folder / "checkpoint-6")
    options = {"resume_from_checkpoint": "true", "teacher_weights": None}
    state = folder / "checkpoint-3" / "potstill_state.json"
    recorded = json.loads(state.read_text())
    recorded["run"]["options"]["teacher_weights"] = None
    state.write_text(json.dumps(recorded))
    write_checksums(state.parent)
    with pytest.raises(PotstillError, match=told):
        distill(run_of([teachers[number] for number in now], corpus_folder, folder, **options))


def test_other_weights_are_refused(two: Path, teachers: list[str], corpus_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(two, folder)
    shutil.rmtree(folder / "checkpoint-6")
    options = {"resume_from_checkpoint": "true", "teacher_weights": [1.0, 1.0]}
    with pytest.raises(PotstillError, match=r"--teacher_weights was \[3.0, 1.0\] and is \[1.0, 1.0\]"):
        distill(run_of(teachers[:2], corpus_folder, folder, **options))


@pytest.fixture(scope="module")
def other_vocabulary(make_teacher: Callable[..., Path], tiny_tokenizer: BertTokenizer) -> Path:
    """A teacher of as many tokens, two of which have changed places."""
    folder = make_teacher(seed=3)
    words = sorted(tiny_tokenizer.get_vocab(), key=tiny_tokenizer.get_vocab().get)
    words[-1], words[-2] = words[-2], words[-1]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=32)
    tokenizer.save_pretrained(folder)
    return folder


def test_two_vocabularies_are_told_apart_by_their_teachers(
    teachers: list[str], other_vocabulary: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    named = [*teachers[:2], str(other_vocabulary)]
    told = f"{teachers[0]} and {other_vocabulary} turn text into different tokens"
    with pytest.raises(PotstillError, match=told):
        distill(run_of(named, corpus_folder, tmp_path / "student"))
    assert not (tmp_path / "student").exists()
    args = run_of(teachers[:1], corpus_folder, tmp_path / "student")
    student = build_student(teachers[0])
    with pytest.raises(PotstillError, match=told):
        DistillationTrainer(student, corpus_folder, args, [load_masked_lm(named[0]), *named[1:]])


def test_heads_of_other_sizes_are_told(
    teachers: list[str], make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    larger = load_masked_lm(make_teacher(vocab_size=128))
    args = run_of(teachers[:1], corpus_folder, tmp_path / "student")
    with pytest.raises(PotstillError, match=rf"{teachers[0]} has \d+ entries and {larger.name_or_path} has 128"):
        DistillationTrainer(build_student(teachers[0]), corpus_folder, args, [teachers[0], larger])


def test_a_loss_that_does_not_fit_one_of_the_teachers_names_it(
    teachers: list[str], make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    wide = str(make_teacher(hidden_size=48))
    relations = {"soft_targets": 1, "attention_relations": {"relation_heads": 32}}  # 32 heads do not divide 48
    with pytest.raises(PotstillError, match=f"With the teacher {wide}: .*relation_heads"):
        distill(run_of([teachers[0], wide], corpus_folder, tmp_path / "student", losses=relations))
    folder = distill(run_of([teachers[0], wide], corpus_folder, tmp_path / "student", max_steps=1))
    assert json.loads((folder / "results.json").read_text())["held_out"]["final"]["cosine"]


@pytest.mark.parametrize("weights", [["1"], ["1", "0", "2"], ["1", "2"]])
def test_wrong_weights_are_told_before_anything_is_written(
    weights: list[str], teachers: list[str], corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "student"
    where = ["--corpus", str(corpus_folder), "--output_dir", str(folder), "--use_cpu"]
    assert main(["distill", "--teacher", *teachers, "--teacher_weights", *weights, *where]) == 1
    assert "--teacher_weights has" in capsys.readouterr().err
    assert not folder.exists()


def test_an_output_folder_that_is_a_teacher_is_refused(
    teachers: list[str], corpus_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--corpus", str(corpus_folder), "--output_dir", teachers[1], "--overwrite_output_dir", "--use_cpu"]
    assert main(["distill", "--teacher", *teachers, *where]) == 1
    assert "is the folder of --teacher, which would be lost" in capsys.readouterr().err


def test_a_bench_measures_with_one_teacher(teachers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--teacher", *teachers, "--use_cpu"]) == 1
    assert "a bench measures with one: name one" in capsys.readouterr().err


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_held_out_figures_are_those_of_the_mean(mean: Mean, teachers: list[str], corpus_folder: Path) -> None:
    corpus, models = Corpus.open(corpus_folder), [load_masked_lm(name) for name in teachers]
    student, weights = build_student(models[0]).eval(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    tokenizer = load_tokenizer(teachers[0])
    masking = Masking(
        torch.from_numpy(corpus.token_counts), control_ids(tokenizer), tokenizer.mask_token_id, 0, "uniform"
    )
    blocks = corpus.train
    measured = held_out_metrics(
        student, models, blocks, masking, 4, 10**6, ensemble=Ensemble.of(3, weights.tolist(), mean)
    )
    inputs = blocks.__getitems__(list(range(len(blocks))))
    masked = masking(inputs["input_ids"], inputs["sample_index"])
    kept = masked.labels >= 0
    target = masked.labels[kept]

    def logits(model: Any) -> torch.Tensor:
        whole = model.double()(masked.input_ids).logits
        return whole.gather(1, masked.positions[..., None].expand(-1, -1, whole.shape[-1]))[kept]

    with torch.no_grad():
        each, ours = torch.stack([logits(model) for model in models]), logits(student).log_softmax(-1)
    if mean == "logits":
        p = (weights[:, None, None] * each).sum(0).softmax(-1)
    else:
        p = (weights[:, None, None] * each.softmax(-1)).sum(0)
    rows = torch.arange(len(target))
    expected = {
        "teacher_loss": -p[rows, target].log().mean(),
        "teacher_accuracy": (p.argmax(-1) == target).double().mean(),
        "kl": (p * (p.log() - ours)).sum(-1).mean(),
        "agreement": (p.argmax(-1) == ours.argmax(-1)).double().mean(),
        "loss": -ours[rows, target].mean(),
    }
    for number, one in enumerate(each.log_softmax(-1), 1):
        expected[f"teacher_{number}_loss"] = -one[rows, target].mean()
        expected[f"teacher_{number}_accuracy"] = (one.argmax(-1) == target).double().mean()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.gpu
def test_recorded_steps_are_measured_and_change_nothing(
    teacher_without_dropout: Path, teachers: list[str], corpus_folder: Path, tmp_path: Path
) -> None:
    found = []
    for recorded in (False, True):
        named = [str(teacher_without_dropout), *teachers[1:]]
        options = {"use_cpu": False, "cuda_graphs": recorded, "bf16": True, "max_steps": 15}
        folder = distill(run_of(named, corpus_folder, tmp_path / str(recorded), **options))
        results = json.loads((folder / "results.json").read_text())
        assert all(one["seconds"] > 0 for one in results["teachers"])
        found.append([entry["loss"] for entry in results["log_history"] if "loss" in entry])
    assert found[1] == pytest.approx(found[0], rel=1e-2)
