"""The plain step gives the same losses and gradients as potstill's own: each checks the other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distillation
from samples import VOCABULARY
from torch import Tensor
from transformers import Trainer

from potstill.bench.plain import PlainStep, PlainTraining
from potstill.corpus import Corpus
from potstill.objective import DistillationObjective, Objective, objective_from
from potstill.student import build_student, load_masked_lm
from potstill.training.step import DistillationStep
from potstill.training.trainer import DistillationTrainer

TERMS = {"alpha_ce": "ce", "alpha_mlm": "mlm", "alpha_cos": "cos"}


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Three blocks of 16 tokens, 4 of each masked; the second has only two to predict."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(VOCABULARY), (3, 16), generator=generator)
    positions = torch.stack([torch.randperm(16, generator=generator)[:4].sort().values for _ in range(3)])
    labels = torch.randint(5, len(VOCABULARY), (3, 4), generator=generator)
    labels[1, 2:] = -100
    return ids, positions, labels


def losses_and_gradients(
    kind: type[DistillationStep], folder: Path, objective: Objective, batch: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor | None], list[str]]:
    teacher = load_masked_lm(folder)
    step = kind(build_student(teacher, initialise="random").train(), teacher, objective)
    parts: list[str] = []
    step.mark = parts.append
    losses = step(*batch)
    losses["loss"].backward()
    return losses, {name: parameter.grad for name, parameter in step.named_parameters()}, parts


@pytest.mark.parametrize("soft_targets", ["all", "masked"])
@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"temperature": 1.0, "alpha_ce": 0.5},
        {"alpha_ce": 0.0},
        {"alpha_mlm": 0.0},
        {"alpha_cos": 0.0},
        {"alpha_ce": 0.0, "alpha_mlm": 0.0},
        {"alpha_ce": 0.0, "alpha_cos": 0.0},
        {"alpha_mlm": 0.0, "alpha_cos": 0.0},
    ],
    ids=lambda weights: ",".join(f"{name}={value}" for name, value in weights.items()) or "defaults",
)
def test_same_losses_and_gradients(
    teacher: Path, batch: tuple[Tensor, Tensor, Tensor], weights: dict[str, Any], soft_targets: Any
) -> None:
    objective = DistillationObjective(**weights, soft_targets=soft_targets)
    ours, our_gradients, our_parts = losses_and_gradients(DistillationStep, teacher, objective, batch)
    plain, plain_gradients, plain_parts = losses_and_gradients(PlainStep, teacher, objective, batch)

    assert ours.keys() == plain.keys()
    assert ours.keys() == {"loss", *(name for weight, name in TERMS.items() if weights.get(weight, 1.0))}
    assert_same(ours, plain, our_gradients, plain_gradients)
    assert our_parts == plain_parts
    assert our_parts == [*(["teacher"] if objective.needs_teacher else []), "student", "losses"]


def assert_same(
    ours: dict[str, Tensor],
    plain: dict[str, Tensor],
    our_gradients: dict[str, Tensor | None],
    plain_gradients: dict[str, Tensor | None],
) -> None:
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert value.requires_grad is (name == "loss")
    learning = 0
    for name, gradient in plain_gradients.items():
        mine = our_gradients[name]
        assert (mine is None) == (gradient is None), name
        if gradient is not None and mine is not None:
            torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-6, msg=name)
            learning += bool(gradient.abs().max() > 1e-4)
    assert learning > 20


@pytest.mark.parametrize("logits_mse", [False, True])
def test_same_losses_and_gradients_at_a_sample(
    teacher: Path, batch: tuple[Tensor, Tensor, Tensor], logits_mse: bool
) -> None:
    losses: dict[str, Any] = {"soft_targets": {"weight": 5, "tokens": "sampled"}, "masked_lm": 2, "hidden_cosine": 1}
    objective = objective_from(losses | ({"logits_mse": {"tokens": "masked"}} if logits_mse else {}))
    free = torch.ones(3, 16).scatter(1, batch[1], 0)
    sampled = torch.multinomial(free, 5)
    ours, our_gradients, _ = losses_and_gradients(DistillationStep, teacher, objective, (*batch, sampled))
    plain, plain_gradients, _ = losses_and_gradients(PlainStep, teacher, objective, (*batch, sampled))
    assert_same(ours, plain, our_gradients, plain_gradients)


LOSSES: list[dict[str, Any]] = [
    {"soft_targets": {"divergence": "reverse_kl"}, "masked_lm": 2},
    {"soft_targets": {"divergence": "jensen_shannon", "temperature": 3, "tokens": "masked"}, "masked_lm": 2},
    {"logits_mse": 1, "masked_lm": 0.5},
    {"logits_mse": {"tokens": "masked"}, "soft_targets": 1},
    {"logits_mse": {"weight": 2}, "soft_targets": {"tokens": "masked"}, "masked_lm": 1},
    {"hidden_mse": {"layers": {0: 1, 1: 3}}, "masked_lm": 1},
    {"hidden_mse": {"weight": 0.3, "layers": {0: 0, -1: -1}}},
    {"attention_relations": {"relation_heads": 4}, "masked_lm": 1},
    {"attention_relations": {"teacher_layer": 2, "student_layer": 1, "relations": ["value"]}, "hidden_cosine": 1},
]


@pytest.mark.parametrize("losses", LOSSES, ids=str)
def test_same_losses_and_gradients_of_every_term(
    teacher: Path, batch: tuple[Tensor, Tensor, Tensor], losses: dict[str, Any]
) -> None:
    ours, our_gradients, _ = losses_and_gradients(DistillationStep, teacher, objective_from(losses), batch)
    plain, plain_gradients, _ = losses_and_gradients(PlainStep, teacher, objective_from(losses), batch)
    assert ours.keys() == plain.keys()
    # The plain step runs all layers, and where nothing reads the last ones their gradient is none for either.
    assert_same(ours, plain, our_gradients, plain_gradients)


def test_same_loss_curve_in_the_trainer(teacher: Path, corpus_folder: Path, tmp_path: Path) -> None:
    def curve(plain: bool) -> list[dict[str, float]]:
        args = distillation(teacher, corpus_folder, tmp_path / str(plain), max_steps=4, save_strategy="no")
        loaded = load_masked_lm(teacher)
        trainer = DistillationTrainer(build_student(loaded), corpus_folder, args, loaded)
        if plain:
            trainer.model = trainer.model_wrapped = PlainStep(trainer.student, trainer.teacher, trainer.step.objective)
        trainer.train()
        assert isinstance(trainer.model, PlainStep) is plain
        return [
            {name: value for name, value in entry.items() if name.startswith("loss")}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]

    ours, plain = curve(plain=False), curve(plain=True)
    assert len(ours) == 4
    for mine, other in zip(ours, plain, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"], json.dumps(ours)


def test_the_plain_loop_learns_what_the_trainer_learns(teacher: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """The same blocks under the same masks: every block in one batch, so that their order does not matter."""
    size = len(Corpus.open(corpus_folder).train)
    options = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
    }
    args = distillation(teacher, corpus_folder, tmp_path / "student", **options)
    loaded = load_masked_lm(teacher)
    trainer = DistillationTrainer(build_student(loaded), corpus_folder, args, loaded)
    training = PlainTraining(
        build_student(loaded), loaded, trainer.step.objective, trainer.corpus.train, trainer.labelling, args, size
    )
    before = build_student(loaded).state_dict()
    Trainer.train(trainer)
    training.run(1)
    ours = trainer.student.state_dict()
    step = max(float((ours[name] - tensor).abs().max()) for name, tensor in before.items())
    assert step == pytest.approx(args.learning_rate, rel=1e-2)
    for name, tensor in training.model.student.state_dict().items():
        change, same = tensor - before[name], ours[name] - before[name]
        # Adam's first step is the sign of the gradient, which rounding decides where the gradient is as good as 0.
        assert float(((change - same).abs() < 0.1 * step).float().mean()) > 0.99, name
