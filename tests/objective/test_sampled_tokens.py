"""Losses at a sample of the tokens: the mean over all samples is the loss of all tokens, and its gradient."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.corpus.masking import Masking, sampled_per_block
from potstill.errors import PotstillError
from potstill.objective import DistillationObjective, Encoded, HiddenCosine, LogitsMSE, MaskedLM, Objective, SoftTargets
from potstill.objective.vocabulary import Vocabulary
from potstill.student import VocabularyHead

LENGTH, WIDTH, WORDS = 7, 6, 23


def encoded(hidden: Tensor, weight: Tensor, bias: Tensor) -> Encoded:
    return Encoded({-1: hidden}, {}, VocabularyHead(torch.tanh, weight, bias))


def fresh(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_the_mean_over_all_samples_is_the_loss_of_all_tokens_and_its_gradient(divergence: Any) -> None:
    student = [fresh(2, LENGTH, WIDTH), fresh(WORDS, WIDTH), fresh(WORDS)]
    teacher = [fresh(2, LENGTH, WIDTH), fresh(WORDS, WIDTH), fresh(WORDS)]
    positions = torch.tensor([[1, 4], [0, 6]])
    labels = torch.tensor([[3, -100], [5, 22]])  # one masked position has no label: it counts as masked all the same
    at_sample: dict[str, Any] = {"tokens": "sampled", "share": 0.4}
    soft_targets, cosine = (
        SoftTargets(weight=5, divergence=divergence, **at_sample),
        HiddenCosine(weight=3, **at_sample),
    )
    sampled_objective = Objective([soft_targets, MaskedLM(weight=2.0), cosine])

    # the loss of all tokens, written out in float64
    parts = [part.clone().requires_grad_() for part in student]
    logits, targets = (torch.tanh(hidden) @ weight.T + bias for hidden, weight, bias in (parts, teacher))
    p, q = (F.log_softmax(z / 2, dim=-1) for z in (targets, logits))
    m = ((p.exp() + q.exp()) / 2).log()
    soft = {
        "forward_kl": (p.exp() * (p - q)).sum(-1),
        "reverse_kl": (q.exp() * (q - p)).sum(-1),
        "jensen_shannon": ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2,
    }[divergence].mean()
    masked = logits.gather(1, positions[..., None].expand(-1, -1, WORDS))
    hard = F.cross_entropy(masked.flatten(0, 1), labels.flatten(), reduction="sum") / labels.numel()
    angle = (parts[0] * teacher[0]).sum(-1) / (parts[0].norm(dim=-1) * teacher[0].norm(dim=-1))
    expected = 5 * 4 * soft + 2 * hard + 3 * (1 - angle).mean()
    expected_gradients = torch.autograd.grad(expected, parts)

    others = [[place for place in range(LENGTH) if place not in masked] for masked in positions.tolist()]
    draws = [list(itertools.combinations(places, sampled_per_block(LENGTH, 2, 0.4))) for places in others]
    assert len(draws[0]) == math.comb(5, 2)
    values, gradients = [], []
    for first, second in itertools.product(*draws):
        parts = [part.clone().requires_grad_() for part in student]
        sampled = torch.tensor([first, second])
        found = sampled_objective(encoded(*parts), [encoded(*teacher)], positions, labels, sampled=sampled)
        values.append(found["loss"].detach())
        gradients.append(torch.autograd.grad(found["loss"], parts))
    assert torch.stack(values).std() > 1e-3  # the draws differ, and only their mean is that of all tokens
    torch.testing.assert_close(torch.stack(values).mean(), expected.detach())
    for drawn, exact in zip(zip(*gradients, strict=True), expected_gradients, strict=True):
        torch.testing.assert_close(torch.stack(drawn).mean(0), exact)


def test_masked_positions_are_not_sampled_and_every_other_one_is_as_often() -> None:
    draws, length = 4000, 40
    ids = torch.randint(4, 50, (1, length)).expand(draws, -1).clone()
    ids[:, 0], ids[:, -1] = 1, 2
    options: dict[str, Any] = {"seed": 7, "rule": "uniform"}
    masking = Masking(torch.ones(50), [0, 1, 2, 3], 3, **options, sampled_share=0.25)
    found = masking(ids, torch.arange(draws))
    plain = Masking(torch.ones(50), [0, 1, 2, 3], 3, **options)(ids, torch.arange(draws))
    assert plain.sampled is None
    for name in ("input_ids", "positions", "labels"):  # the sample changes no mask
        assert torch.equal(getattr(plain, name), getattr(found, name))
    assert found.sampled is not None
    count = sampled_per_block(length, 6, 0.25)
    assert found.sampled.shape == (draws, count) == (draws, 8)
    chosen = torch.zeros(draws, length, dtype=torch.int64).scatter_add(
        1, found.sampled, torch.ones(draws, count).long()
    )
    assert chosen.max() == 1  # without replacement
    assert not chosen.gather(1, found.positions).any()
    free = torch.ones_like(chosen).scatter(1, found.positions, 0)
    rates, expected = chosen.sum(0) / free.sum(0), count / (length - 6)
    assert ((rates - expected).abs() < 5 * (expected * (1 - expected) / free.sum(0)).sqrt()).all()


def test_a_sample_depends_on_seed_and_sample_index_alone() -> None:
    ids = torch.randint(4, 50, (6, 40))

    def sample(ids: Tensor, index: Tensor, seed: int = 7) -> Tensor:
        found = Masking(torch.ones(50), [0, 1, 2, 3], 3, seed, sampled_share=0.25)(ids, index).sampled
        assert found is not None
        return found

    together = sample(ids, torch.arange(100, 106))
    torch.manual_seed(1)
    for number in (4, 1):
        assert torch.equal(sample(ids[number : number + 1], torch.tensor([100 + number]))[0], together[number])
    assert not torch.equal(sample(ids, torch.arange(200, 206)), together)
    assert not torch.equal(sample(ids, torch.arange(100, 106), seed=8), together)


def test_a_share_beside_other_tokens_and_a_sample_that_saves_nothing_are_refused() -> None:
    for options, message in (
        ({"tokens": "all", "share": 0.2}, "share"),
        ({"tokens": "sampled", "share": 1.0}, "share"),
        ({"tokens": "sampled", "share": "much"}, "share"),
    ):
        with pytest.raises(PotstillError, match=message):
            SoftTargets(**options)  # type: ignore[arg-type]
    with pytest.raises(PotstillError, match="logits_mse needs the logits of all tokens"):
        Objective([SoftTargets(tokens="sampled"), LogitsMSE()])
    with pytest.raises(PotstillError, match="another loss reads the last hidden states of all tokens"):
        Objective([SoftTargets(), HiddenCosine(tokens="sampled")])
    with pytest.raises(PotstillError, match=r"soft_targets has a share of 0\.2 and hidden_cosine one of 0\.3"):
        Objective([SoftTargets(tokens="sampled"), HiddenCosine(tokens="sampled", share=0.3)])
    with pytest.raises(PotstillError, match="causal model"):
        DistillationObjective(soft_targets="sampled", causal=True).check_direction(causal=True)
    assert "share" not in SoftTargets().options()
    assert DistillationObjective(soft_targets="sampled").sampled_share == pytest.approx(0.2)
    of_cosine = DistillationObjective(soft_targets="masked", hidden_cosine="sampled", soft_targets_share=0.3)
    assert of_cosine.sampled_share == pytest.approx(0.3)
    assert DistillationObjective().sampled_share == 0
    assert Vocabulary(soft_targets=SoftTargets(tokens="sampled")).student_reads.logits == "sampled"
