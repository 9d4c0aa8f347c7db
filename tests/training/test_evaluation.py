"""Held-out metrics against a naive float64 computation by transformers' own forward pass."""

import copy
import json
from pathlib import Path

import pytest
import torch
from runs import distillation, new_trainer
from transformers import PreTrainedModel

from potstill import distill
from potstill.corpus import Blocks, Corpus, Masking
from potstill.student import build_student, load_masked_lm
from potstill.training.evaluation import held_out_metrics


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> PreTrainedModel:
    return load_masked_lm(teacher_folder)


@pytest.fixture
def student(teacher: PreTrainedModel) -> PreTrainedModel:
    """Of the teacher's depth and a little off its weights, so that the two agree now and then."""
    student = build_student(teacher, layers="0,1,2,3").train()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.05)
    return student


@pytest.fixture
def masking(corpus: Corpus) -> Masking:
    tokenizer = corpus.tokenizer()
    counts = torch.from_numpy(corpus.token_counts)
    return Masking(counts, tokenizer.all_special_ids, tokenizer.mask_token_id, seed=0, rule="uniform")


@torch.no_grad()
def naive_metrics(
    student: PreTrainedModel, teacher: PreTrainedModel, blocks: Blocks, masking: Masking
) -> dict[str, float]:
    """One block and one token at a time."""
    student, teacher = (copy.deepcopy(model).double().eval() for model in (student, teacher))
    masked_tokens, losses, right, teacher_losses, teacher_right, kls, agreed, cosines = 0, [], [], [], [], [], [], []
    for number in range(len(blocks)):
        item = blocks[number]
        block = masking(item["input_ids"][None], item["sample_index"][None])
        ours, theirs = (model(input_ids=block.input_ids, output_hidden_states=True) for model in (student, teacher))
        for mine, other in zip(ours.hidden_states[-1][0], theirs.hidden_states[-1][0], strict=True):
            cosines.append((mine @ other / (mine.norm() * other.norm())).item())
        for position, label in zip(block.positions[0].tolist(), block.labels[0].tolist(), strict=True):
            if label == -100:
                continue
            masked_tokens += 1
            q, p = ours.logits[0, position].softmax(0), theirs.logits[0, position].softmax(0)
            losses.append(-q[label].log().item())
            teacher_losses.append(-p[label].log().item())
            right.append(q.argmax().item() == label)
            teacher_right.append(p.argmax().item() == label)
            agreed.append(q.argmax().item() == p.argmax().item())
            kls.append((p * (p / q).log()).sum().item())
    assert masked_tokens >= 2 * len(blocks)
    columns = {"loss": losses, "accuracy": right, "teacher_loss": teacher_losses, "teacher_accuracy": teacher_right}
    columns |= {"kl": kls, "agreement": agreed, "cosine": cosines}
    return {name: sum(values) / len(values) for name, values in columns.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_naive_computation(
    student: PreTrainedModel, teacher: PreTrainedModel, corpus: Corpus, masking: Masking, batch_size: int
) -> None:
    # Training blocks, for there are more of them.
    measured = held_out_metrics(student, teacher, corpus.train, masking, batch_size, max_samples=10**6)
    assert measured == pytest.approx(naive_metrics(student, teacher, corpus.train, masking), rel=1e-4)
    assert 0 < measured["agreement"] < 1
    assert student.training
    assert not teacher.training


def test_processes_share_the_work(
    student: PreTrainedModel, teacher: PreTrainedModel, corpus: Corpus, masking: Masking
) -> None:
    alone = held_out_metrics(student, teacher, corpus.train, masking, 4, 30)
    sums: list[torch.Tensor] = []

    def keep(values: torch.Tensor) -> torch.Tensor:
        sums.append(values)
        return torch.stack(sums).sum(0)

    for rank in range(3):
        together = held_out_metrics(student, teacher, corpus.train, masking, 4, 30, rank, 3, keep)
    assert together == pytest.approx(alone, rel=1e-6)
    assert sums[0][7] == 3 * 4 * 16  # the tokens of every third of eight batches


def test_teacher_as_its_own_student(teacher: PreTrainedModel, corpus: Corpus, masking: Masking) -> None:
    metrics = held_out_metrics(copy.deepcopy(teacher), teacher, corpus.validation, masking, 4, 100)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["cosine"] == pytest.approx(1, abs=1e-6)
    assert metrics["agreement"] == 1
    assert (metrics["loss"], metrics["accuracy"]) == (metrics["teacher_loss"], metrics["teacher_accuracy"])


def test_other_widths_have_no_cosine(
    make_teacher: object, student: PreTrainedModel, corpus: Corpus, masking: Masking
) -> None:
    wide = load_masked_lm(make_teacher(hidden_size=48, seed=3))
    metrics = held_out_metrics(student, wide, corpus.validation, masking, 4, 100)
    assert "cosine" not in metrics
    assert metrics["kl"] > 0


def test_without_a_teacher(student: PreTrainedModel, corpus: Corpus, masking: Masking) -> None:
    assert held_out_metrics(student, None, corpus.validation, masking, 4, 100).keys() == {"loss", "accuracy"}


def test_evaluation_draws_no_random_number(
    student: PreTrainedModel, teacher: PreTrainedModel, corpus: Corpus, masking: Masking
) -> None:
    before = torch.get_rng_state()
    first = held_out_metrics(student, teacher, corpus.validation, masking, 4, 100)
    assert torch.equal(torch.get_rng_state(), before)
    assert held_out_metrics(student, teacher, corpus.validation, masking, 4, 100) == first


def test_few_samples_are_spread_over_the_split(
    student: PreTrainedModel, corpus: Corpus, masking: Masking, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    getitems = Blocks.__getitems__
    monkeypatch.setattr(Blocks, "__getitems__", lambda self, draws: read.extend(draws) or getitems(self, draws))
    held_out_metrics(student, None, corpus.train, masking, 2, max_samples=4)
    assert read == [0, 15, 30, 45]


def test_masks_do_not_depend_on_the_recipe(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    figures = []
    recipes = [{"seed": 1}, {"seed": 2, "masking": "uniform", "mlm_probability": 0.4, "per_device_eval_batch_size": 3}]
    for recipe in recipes:
        trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "unused", **recipe))
        figures.append({name: value for name, value in trainer.evaluate().items() if name.startswith("eval_")})
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)


def test_the_same_model_measures_the_same_after_training(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    options = {"max_steps": 2, "learning_rate": 1e-30, "eval_on_start": True, "eval_strategy": "epoch"}
    folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    held_out = json.loads((folder / "results.json").read_text())["held_out"]
    assert held_out["final"] == held_out["initial"]
