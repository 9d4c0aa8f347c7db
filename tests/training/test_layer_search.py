"""`--layers auto`: the best choice is found, recorded, and kept by reruns and resumptions."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families_samples import CONFIGS, random_model
from runs import assert_same_tensors, distillation, send_signal_in_step, tensors
from transformers import PreTrainedModel

from potstill import Corpus, PotstillError, build_student, choose_layers, distill, find_layers, prepare
from potstill.cli import main
from potstill.student import load_masked_lm
from potstill.training import layer_search
from potstill.training.control import TrainingInterrupted
from potstill.training.layer_scores import LayerScore, UntrainedStudents


@pytest.fixture(scope="module")
def six_layers(make_teacher: Any) -> Path:
    return make_teacher(num_hidden_layers=6)


class Scores:
    """Stands for `UntrainedStudents`: the loss of a choice is what `loss` says."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.measured = loss, []

    def score(self, layers: tuple[int, ...]) -> LayerScore:
        self.measured.append(layers)
        return LayerScore(layers, self.loss(layers), 0.5, 1.0)

    def start_from(self, layers: tuple[int, ...]) -> None: ...


def searched(loss: Any, depth: int = 3, end: float = float("inf")) -> tuple[Scores, list[LayerScore], bool]:
    scores = Scores(loss)
    choices = layer_search._Choices(random_model(CONFIGS["bert"](num_hidden_layers=7)), depth)
    return scores, *layer_search._search(scores, choices, end, lambda line: None)


@pytest.mark.parametrize("seed", range(5))
def test_no_exchange_of_one_layer_makes_the_result_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = {choice: torch.rand((), generator=generator).item() for choice in itertools.combinations(range(7), 3)}
    scores, tried, finished = searched(losses.__getitem__)
    assert finished
    assert len(scores.measured) == len(set(scores.measured)) == len(tried)
    assert [score.loss for score in tried] == sorted(losses[layers] for layers in scores.measured)
    best = tried[0].layers
    for other in losses:
        if len(set(best) & set(other)) == 2 or other in {(0, 3, 6), (0, 1, 2), (0, 2, 4), (4, 5, 6)}:
            assert losses[best] <= losses[other]


def test_equal_choices_keep_the_first_that_was_measured_and_nan_is_the_worst() -> None:
    assert searched(lambda layers: 2.0)[1][0].layers == (0, 3, 6)
    assert searched(lambda layers: float("nan") if 3 in layers else 1.0)[1][0].layers == (0, 1, 2)


def test_without_time_the_result_is_alternate() -> None:
    scores, tried, finished = searched(sum, end=0)
    assert scores.measured == [(0, 3, 6)] == [score.layers for score in tried]
    assert not finished


def test_all_layers_need_no_search() -> None:
    assert searched(sum, depth=7)[0].measured == [tuple(range(7))]


def test_choices_are_those_that_the_family_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = [(0, 1, 5), (0, 3, 5), (0, 3, 4), (0, 1, 2)]

    def adjust_layers(self: object, config: object, layers: list[int]) -> list[int]:
        return list(min(allowed, key=lambda other: sum(abs(a - b) for a, b in zip(layers, other, strict=True))))

    monkeypatch.setattr("potstill.student.bert.Bert.adjust_layers", adjust_layers, raising=False)
    scores, tried, finished = searched(lambda layers: -sum(layers))
    assert set(scores.measured) == set(allowed)
    assert tried[0].layers == (0, 3, 5)
    assert finished


def test_it_measures_untrained_students_and_is_never_worse_than_alternate(
    six_layers: Path, corpus_folder: Path
) -> None:
    lines: list[str] = []
    found = find_layers(str(six_layers), str(corpus_folder), 4, seconds=60, report=lines.append)
    assert found.finished
    assert found.layers == list(found.tried[0].layers)
    losses = {score.layers: score.loss for score in found.tried}
    assert found.tried[0].loss == min(losses.values()) < losses[tuple(choose_layers(6, 4))]
    assert lines[0].startswith("layers 0,2,3,5 without training: loss")
    listed = ",".join(map(str, found.layers))
    assert lines[-1].startswith(f"layers {listed} chosen of {len(losses)} choices on {found.blocks} held-out blocks")
    again = find_layers(str(six_layers), str(corpus_folder), 4, seconds=60, batch_size=3)
    assert [score.layers for score in again.tried] == [score.layers for score in found.tried]


def test_it_takes_the_blocks_that_the_evaluation_leaves_out(
    teacher_folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = len(corpus.validation)
    found = find_layers(str(teacher_folder), corpus)
    assert (found.blocks, found.evaluated_too) == (held_out, True)
    assert found.tokens == held_out * round(0.15 * corpus.validation.block_size)
    monkeypatch.setattr(layer_search, "FEWEST_BLOCKS", 3)
    monkeypatch.setattr(layer_search, "FEWEST_TOKENS", 1)
    read: list[list[int]] = []
    reading = type(corpus.validation).__getitems__
    monkeypatch.setattr(
        type(corpus.validation), "__getitems__", lambda self, chosen: read.append(chosen) or reading(self, chosen)
    )
    found = find_layers(str(teacher_folder), corpus, max_eval_samples=held_out - 3)
    evaluated = layer_search.evaluated_blocks(held_out, held_out - 3)
    assert (found.blocks, found.evaluated_too) == (3, False)
    assert sorted(itertools.chain.from_iterable(read)) == sorted(set(range(held_out)) - set(evaluated))


def test_a_teacher_in_training_mode_is_measured_without_dropout(teacher_folder: Path, corpus: Corpus) -> None:
    teacher: PreTrainedModel = load_masked_lm(teacher_folder)
    expected = find_layers(teacher, corpus).tried
    assert find_layers(teacher.train(), corpus).tried == expected
    assert teacher.training


@pytest.fixture(scope="module")
def student(six_layers: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "student"
    options = {"layers": "auto", "num_hidden_layers": 4, "max_steps": 5, "eval_on_start": True}
    return distill(distillation(six_layers, corpus_folder, folder, **options, eval_strategy="steps"))


def test_results_card_and_recipe_tell_what_was_found(student: Path) -> None:
    results = json.loads((student / "results.json").read_text())
    search = results["layer_search"]
    best = search["tried"][0]
    listed = ",".join(map(str, best["layers"]))
    assert search["finished"]
    assert yaml.safe_load((student / "recipe.yaml").read_text())["layers"] == listed
    card = (student / "README.md").read_text()
    assert f"It started from the teacher's layers {listed}, counted from 0." in card
    assert f"the students of {len(search['tried'])} choices of layers" in card
    rows = card.split("## Layers of the teacher")[1].split("##")[0].splitlines()
    rows = [row for row in rows if row.startswith("| ")][1:]
    assert len(rows) == min(10, len(search["tried"]))
    assert rows[0] == f"| {listed} | {best['loss']:.3f} | {best['accuracy']:.1%} | {best['kl']:.3f} |"


def test_a_rerun_of_the_recipe_does_not_search(
    student: Path, tmp_path: Path, signals_restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UntrainedStudents, "score", None)
    again = tmp_path / "again"
    assert main(["distill", "--config", str(student / "recipe.yaml"), "--output_dir", str(again)]) == 0
    assert_same_tensors(tensors(again), tensors(student))


@pytest.mark.parametrize("layers", ["auto", "as found"])
def test_a_resumed_run_keeps_its_layers_and_its_record(
    student: Path,
    six_layers: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
    layers: str,
) -> None:
    folder = tmp_path / "student"
    found = yaml.safe_load((student / "recipe.yaml").read_text())["layers"]
    layers = found if layers == "as found" else layers
    options = {"layers": layers, "num_hidden_layers": 4, "max_steps": 5}
    first = distillation(six_layers, corpus_folder, folder, **options | {"layers": "auto"})
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 3)
        with pytest.raises(TrainingInterrupted):
            distill(first)
    monkeypatch.setattr(UntrainedStudents, "score", None)  # no search is made again
    distill(distillation(six_layers, corpus_folder, folder, **options, resume_from_checkpoint="true"))
    assert_same_tensors(tensors(folder), tensors(student))
    results, whole = (json.loads((path / "results.json").read_text()) for path in (folder, student))
    assert results["layer_search"]["tried"] == whole["layer_search"]["tried"]
    other = distillation(
        six_layers, corpus_folder, folder, **options | {"layers": "first"}, resume_from_checkpoint="true"
    )
    with pytest.raises(PotstillError, match=f"--layers was {found} and is first"):
        distill(other)


@pytest.fixture(scope="module")
def nothing_held_out(teacher_folder: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nothing held out") / "blocks"
    prepare([str(text_path)], str(folder), str(teacher_folder), 16, validation_fraction=0, num_proc=1)
    return folder


def test_without_held_out_blocks_auto_is_refused_and_the_default_is_alternate(
    teacher_folder: Path, nothing_held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = distillation(teacher_folder, nothing_held_out, tmp_path / "student", layers="auto", max_steps=1)
    with pytest.raises(
        PotstillError, match="--layers auto measures layers on held-out blocks, and the corpus has none"
    ):
        distill(args)
    assert not (tmp_path / "student").exists()
    args.layers = None
    folder = distill(args)
    assert "so the student starts from --layers alternate" in capsys.readouterr().err
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["layers"] == "alternate"
    assert json.loads((folder / "results.json").read_text())["layer_search"] is None


def test_a_random_start_needs_no_search(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UntrainedStudents, "score", None)
    options = {"layers": "auto", "initialise": "random", "max_steps": 1}
    assert distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options)).is_dir()


def test_what_cannot_be_searched(teacher_folder: Path, make_teacher: Any, corpus_folder: Path) -> None:
    with pytest.raises(PotstillError, match="--layers auto cannot fill 5 student layers from a teacher of 4"):
        find_layers(str(teacher_folder), str(corpus_folder), 5)
    with pytest.raises(PotstillError, match="a student needs a whole number of layers, at least 1"):
        find_layers(str(teacher_folder), str(corpus_folder), 0)
    with pytest.raises(PotstillError, match="The teacher reads at most 8 tokens"):
        find_layers(str(make_teacher(max_position_embeddings=8)), str(corpus_folder))
    with pytest.raises(PotstillError, match="'auto' is measured on a corpus: call find_layers"):
        build_student(str(teacher_folder), layers="auto")
