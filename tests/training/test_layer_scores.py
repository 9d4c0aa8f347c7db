"""The score of a choice of layers is that of the student which `build_student` builds of them."""

import copy
from collections.abc import Sequence

import pytest
import torch
from families_samples import LENGTH, SAMPLES, random_model
from transformers import PreTrainedModel

from potstill.corpus.labelling import LabelledBlocks
from potstill.student import build_student
from potstill.training.layer_scores import UntrainedStudents

CHOICES = [(0, 3), (1, 3), (0, 1, 2), (0, 1, 2, 3), (3, 0, 3)]
"""Some begin like the choice that the scores start from, and some do not."""


def batches(seed: int) -> list[LabelledBlocks]:
    """Two batches of random blocks, one of them with a position that has no label."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(5, 101, shape, generator=generator)

    labelled = [LabelledBlocks(drawn(b, LENGTH), torch.tensor([[2, 5, 9]]).expand(b, 3), drawn(b, 3)) for b in (3, 2)]
    labelled[0].labels[1, 2] = -100
    return labelled


@torch.no_grad()
def naive(teacher: PreTrainedModel, student: PreTrainedModel, blocks: list[LabelledBlocks]) -> Sequence[float]:
    """Loss, accuracy and KL, one token at a time, by the models' own forward pass in float64."""
    losses, right, kls = [], [], []
    for batch in blocks:
        ours, theirs = (model.double()(input_ids=batch.input_ids).logits for model in (student, teacher))
        for block in range(len(batch.input_ids)):
            for place, label in zip(batch.positions[block].tolist(), batch.labels[block].tolist(), strict=True):
                if label != -100:
                    q, p = ours[block, place].softmax(0), theirs[block, place].softmax(0)
                    losses.append(-q[label].log())
                    right.append((q.argmax() == label).double())
                    kls.append((p * (p.log() - q.log())).sum())
    return [torch.stack(values).mean().item() for values in (losses, right, kls)]


@pytest.mark.parametrize(("family", "fold_token_types"), [("bert", False), *((name, True) for name in SAMPLES)])
def test_a_choice_has_the_score_of_its_student(family: str, fold_token_types: bool) -> None:
    teacher, blocks = random_model(SAMPLES[family](), seed=2), batches(seed=4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    students = UntrainedStudents(teacher, blocks, fold_token_types)
    expected = {}
    choices = [layers for layers in CHOICES if family != "modernbert" or (layers[0] == 0 and 0 not in layers[1:])]
    for layers in choices:
        student = build_student(teacher, None, layers, "teacher", fold_token_types)
        expected[layers] = naive(copy.deepcopy(teacher), student, blocks)
    for start in [None, (0, 1, 2), (0, 1, 2, 3), (0, 3)]:
        if start:
            students.start_from(start)
        for layers in choices:
            score = students.score(layers)
            assert (score.loss, score.accuracy, score.kl) == pytest.approx(expected[layers], rel=1e-4, abs=1e-5), layers
            assert score.layers == layers
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_all_layers_of_a_teacher_say_what_it_says() -> None:
    teacher = random_model(SAMPLES["roberta"]())
    assert UntrainedStudents(teacher, batches(seed=1)).score(range(4)).kl == pytest.approx(0, abs=1e-6)
