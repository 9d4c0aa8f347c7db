"""How `losses:` of a recipe is read, and what an objective makes of the losses that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from potstill.errors import PotstillError
from potstill.objective import (
    AttentionRelations,
    Batch,
    DistillationObjective,
    Encoded,
    HiddenCosine,
    HiddenMSE,
    LogitsMSE,
    MaskedLM,
    Objective,
    SoftTargets,
    Term,
    Vocabulary,
    objective_from,
)
from potstill.student import Reads, VocabularyHead

EXAMPLE = {
    "soft_targets": {"weight": 5, "temperature": 2, "tokens": "all", "divergence": "forward_kl"},
    "masked_lm": 2,
    "hidden_cosine": 1,
    "hidden_mse": {"weight": 1, "layers": {0: 0, 5: 11}},
    "attention_relations": {"weight": 1, "teacher_layer": 11, "relation_heads": 48, "relations": ["query", "value"]},
    "logits_mse": {"tokens": "masked"},
}


def test_a_mapping_becomes_terms() -> None:
    objective = objective_from(EXAMPLE)
    assert objective.terms == (
        Vocabulary(
            soft_targets=SoftTargets(weight=5), hard_labels=MaskedLM(weight=2), logits_mse=LogitsMSE(tokens="masked")
        ),
        HiddenCosine(),
        HiddenMSE(layers={0: 0, 5: 11}),
        AttentionRelations(teacher_layer=11, relation_heads=48, relations=["query", "value"]),
    )
    assert objective_from(objective.losses).terms == objective.terms


def test_distilberts_weights_say_the_same_as_its_losses() -> None:
    losses = {"soft_targets": 5, "masked_lm": 2, "hidden_cosine": 1}
    assert objective_from(losses).terms == DistillationObjective().terms
    masked = {"soft_targets": {"weight": 3, "temperature": 4, "tokens": "masked"}, "hidden_cosine": 1}
    assert objective_from(masked).terms == DistillationObjective(3, 0, 1, 4, "masked").terms


def test_numbers_may_come_as_text() -> None:
    """YAML 1.1 takes 1e-1 for text, and the keys of JSON are text."""
    objective = objective_from({"hidden_mse": {"weight": "1e-1", "layers": {"0": "1", "-1": 2}}})
    assert objective.terms == (HiddenMSE(weight=0.1, layers={0: 1, -1: 2}),)
    assert objective_from({"attention_relations": {"relations": "key"}}).terms[0].relations == ("key",)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ({"hidden_mze": 1}, "there is no loss 'hidden_mze'; did you mean hidden_mse?"),
        (
            {"quux": 1},
            "there is no loss 'quux': choose from soft_targets, masked_lm, causal_lm, logits_mse,",
        ),
        ({3: 1}, "there is no loss 3"),
        ({"hidden_mse": {"layer": {0: 0}}}, "hidden_mse has no option 'layer'; did you mean layers?"),
        ({"masked_lm": {"temperature": 2}}, "masked_lm has no option 'temperature': choose from weight."),
        ({"masked_lm": -1}, "weight of masked_lm is -1: it must be a number, 0 or more"),
        ({"masked_lm": float("nan")}, "weight of masked_lm is nan"),
        ({"masked_lm": None}, "weight of masked_lm is None"),
        ({"masked_lm": True}, "weight of masked_lm is True"),
        ({"masked_lm": "much"}, "weight of masked_lm is 'much'"),
        ({"masked_lm": [1]}, r"weight of masked_lm is \[1\]"),
        ({"hidden_cosine": {"weight": float("inf")}}, "weight of hidden_cosine is inf"),
        ({"soft_targets": {"temperature": 0}}, "temperature of soft_targets is 0: it must be a number above 0"),
        ({"soft_targets": {"tokens": "some"}}, "tokens of soft_targets is 'some': it must be all, masked or sampled"),
        (
            {"soft_targets": {"divergence": "kl"}},
            "divergence of soft_targets is 'kl': it must be forward_kl, reverse_kl or",
        ),
        ({"logits_mse": {"tokens": "none"}}, "tokens of logits_mse is 'none'"),
        ({"hidden_mse": {"layers": [0, 5]}}, r"layers of hidden_mse is \[0, 5\]: it must be a mapping of student"),
        ({"hidden_mse": {"layers": {}}}, "layers of hidden_mse is {}"),
        ({"hidden_mse": {"layers": {"first": 0}}}, "layers of hidden_mse is {'first': 0}"),
        ({"hidden_mse": {"layers": {0: 1.5}}}, "layers of hidden_mse is {0: 1.5}"),
        ({"hidden_mse": {"layers": {0: [1, 2]}}}, "layers of hidden_mse is"),
        ({"attention_relations": {"teacher_layer": "last"}}, "teacher_layer of attention_relations is 'last'"),
        ({"attention_relations": {"relation_heads": 0}}, "relation_heads of attention_relations is 0"),
        ({"attention_relations": {"relation_heads": 2.5}}, "relation_heads of attention_relations is 2.5"),
        ({"attention_relations": {"relations": ["query", "quay"]}}, "relations of attention_relations is"),
        ({"attention_relations": {"relations": []}}, r"relations of attention_relations is \[\]"),
        ({"attention_relations": {"relations": ["key", "key"]}}, "without repetitions"),
        ({"masked_lm": 0, "hidden_mse": {"weight": 0}}, "no loss has a weight above 0"),
        ({}, "losses is {}: it must map names to weights"),
        ([], r"losses is \[\]"),
        ("masked_lm", "losses is 'masked_lm'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(losses: Any, told: str) -> None:
    with pytest.raises(PotstillError, match=told) as error:
        objective_from(losses)
    assert "\n" not in str(error.value)


def test_a_loss_of_weight_zero_is_as_if_it_were_not_there() -> None:
    others = [kind(weight=0) for kind in (SoftTargets, HiddenMSE, LogitsMSE, AttentionRelations)]
    objective = Objective([MaskedLM(), *others])
    assert objective.terms == (Vocabulary(hard_labels=MaskedLM()),)
    assert not objective.needs_teacher
    assert not objective.teacher_reads
    assert objective.student_reads == Reads("masked")


@pytest.mark.parametrize(
    ("losses", "teacher", "student"),
    [
        ({"masked_lm": 1}, Reads(), Reads("masked")),
        ({"soft_targets": 1}, Reads("all"), Reads("all")),
        ({"soft_targets": {"tokens": "masked"}, "masked_lm": 1}, Reads("masked"), Reads("masked")),
        ({"soft_targets": {"tokens": "masked"}, "logits_mse": 1}, Reads("all"), Reads("all")),
        ({"hidden_cosine": 1}, Reads(hidden={-1}), Reads(hidden={-1})),
        ({"hidden_mse": {"layers": {0: 1, 2: 5}}, "masked_lm": 1}, Reads(hidden={1, 5}), Reads("masked", {0, 2})),
        ({"hidden_cosine": {"tokens": "masked"}}, Reads(last="masked"), Reads(last="masked")),
        (
            {"soft_targets": {"tokens": "masked"}, "hidden_cosine": 1},
            Reads("masked", {-1}),
            Reads("masked", last="all"),
        ),
        ({"hidden_mse": {"layers": {-1: -1}}, "masked_lm": 1}, Reads(last="all"), Reads("masked", last="all")),
        (
            {"attention_relations": {"teacher_layer": 9, "student_layer": 2}},
            Reads(attention={9}),
            Reads(attention={2}),
        ),
    ],
    ids=str,
)
def test_what_is_read_is_what_the_losses_read(losses: dict[str, Any], teacher: Reads, student: Reads) -> None:
    objective = objective_from(losses)
    assert objective.teacher_reads == teacher
    assert objective.student_reads == student
    assert objective.needs_teacher == bool(teacher)


def test_the_same_loss_twice_is_refused() -> None:
    with pytest.raises(PotstillError, match="hidden_mse is given 2 times"):
        Objective([HiddenMSE(), HiddenMSE(layers={0: 0})])


def test_losses_that_need_a_teacher_say_so() -> None:
    student = BertConfig()
    with pytest.raises(PotstillError, match="The losses soft_targets and hidden_mse need a teacher: name one"):
        objective_from({"soft_targets": 1, "masked_lm": 1, "hidden_mse": 1}).check(None, student)
    with pytest.raises(PotstillError, match="The loss logits_mse needs a teacher: name one, or set its weight to 0"):
        objective_from({"logits_mse": 1, "masked_lm": 1}).check(None, student)
    objective_from({"masked_lm": 1}).check(None, student)


def test_vocabularies_must_be_one() -> None:
    with pytest.raises(PotstillError, match="must share one vocabulary"):
        objective_from({"soft_targets": 1}).check(BertConfig(), BertConfig(vocab_size=100))
    objective_from({"hidden_cosine": 1}).check(BertConfig(), BertConfig(vocab_size=100))


@dataclass(frozen=True, kw_only=True)
class FirstToken(Term):
    """Someone's own loss: how far the first token's states are apart, in some layer of the teacher."""

    name: ClassVar[str] = "first_token"
    layer: int = 0

    @property
    def student_reads(self) -> Reads:
        return Reads(hidden={-1})

    @property
    def teacher_reads(self) -> Reads:
        return Reads(hidden={self.layer})

    def value(self, batch: Batch) -> Tensor:
        assert batch.teacher is not None
        return (batch.student.last[:, 0] - batch.teacher.hidden[self.layer][:, 0]).abs().mean()


def test_a_term_of_ones_own() -> None:
    objective = Objective([FirstToken(weight=3.0, layer=2), HiddenCosine()])
    head = VocabularyHead(lambda hidden: hidden, torch.zeros(1), None)
    ours, theirs, other = (torch.randn(2, 4, 6) for _ in range(3))
    losses = objective(
        Encoded({-1: ours}, {}, head), [Encoded({-1: other, 2: theirs}, {}, head)], torch.empty(0), torch.empty(0)
    )
    apart = (ours[:, 0] - theirs[:, 0]).abs().mean()
    assert losses.keys() == {"loss", "first_token", "cos"}
    torch.testing.assert_close(losses["first_token"], apart)
    torch.testing.assert_close(losses["loss"], 3 * apart + losses["cos"])
    with pytest.raises(PotstillError, match="The loss first_token reads layer 2 of the teacher, which has 2 layers"):
        objective.check(BertConfig(num_hidden_layers=2), BertConfig())


def test_what_is_trained_besides_is_decided_by_the_seed() -> None:
    objective = objective_from({"hidden_mse": {"layers": {0: 0, 1: 3}}, "masked_lm": 1})
    teacher, student = BertConfig(hidden_size=48), BertConfig(hidden_size=24)
    before = torch.get_rng_state()
    first, again, other = (objective.modules([teacher], student, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == {
        "hidden_mse.0.weight": (48, 24),
        "hidden_mse.0.bias": (48,),
        "hidden_mse.1.weight": (48, 24),
        "hidden_mse.1.bias": (48,),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden_mse.0.weight"], other["hidden_mse.0.weight"])
    assert len(objective.modules([teacher], teacher)) == len(objective.modules([], student)) == 0
