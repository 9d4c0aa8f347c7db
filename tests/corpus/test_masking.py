"""Masking: the distribution of DistilBERT's rule, constant counts, and reproducibility by seed and sample index."""

import math

import numpy as np
import pytest
import torch

from potstill.corpus.masking import IGNORED, Masking, masked_per_block

VOCABULARY, CLS, SEP, MASK = 50, 1, 2, 3
SPECIAL = [0, CLS, SEP, MASK]


def masking(counts=None, **options):
    counts = torch.arange(1, VOCABULARY + 1) ** 2 if counts is None else counts
    return Masking(counts, SPECIAL, MASK, **{"seed": 7, **options})


def blocks(batch=6, length=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (batch, length), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def test_every_block_has_the_same_number_of_masked_tokens_and_the_labels_are_the_originals():
    ids = blocks()
    masked = masking()(ids, torch.arange(6))
    assert masked.positions.shape == masked.labels.shape == (6, masked_per_block(40, 0.15)) == (6, 6)
    assert torch.equal(masked.labels, ids.gather(1, masked.positions))
    assert (masked.positions.diff(dim=1) > 0).all()  # without replacement, in order
    assert not torch.isin(masked.labels, torch.tensor(SPECIAL)).any()
    untouched = torch.ones_like(ids, dtype=torch.bool).scatter(1, masked.positions, False)
    assert torch.equal(masked.input_ids[untouched], ids[untouched])


def test_a_mask_depends_on_seed_and_draw_alone():
    ids, rule = blocks(), masking()
    together = rule(ids, torch.arange(100, 106))
    apart = [rule(ids[i : i + 1], torch.tensor([100 + i])) for i in (3, 0, 5, 1, 4, 2)]
    for i, single in zip((3, 0, 5, 1, 4, 2), apart, strict=True):
        assert torch.equal(single.input_ids[0], together.input_ids[i])
        assert torch.equal(single.positions[0], together.positions[i])
    assert not torch.equal(rule(ids, torch.arange(200, 206)).positions, together.positions)
    assert not torch.equal(masking(seed=8)(ids, torch.arange(100, 106)).positions, together.positions)


def test_global_random_state_is_neither_read_nor_moved():
    ids, rule = blocks(), masking()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = rule(ids, torch.arange(6))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first.input_ids, rule(ids, torch.arange(6)).input_ids)


@pytest.mark.parametrize("rule", ["frequency", "uniform"])
def test_inclusion_probabilities_match_sequential_sampling_without_replacement(rule):
    """One block of six tokens, three drawn: compare with the exact probabilities, found by enumerating every order."""
    counts = torch.tensor([1, 1, 1, 1, 1, 8, 64, 512, 4096, 40000])
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    weight = counts[ids[0]].double().numpy() ** (-0.7 if rule == "frequency" else 0.0)

    def inclusion(chosen, probability, remaining):
        if remaining == 0:
            return {tuple(sorted(chosen)): probability}
        total = sum(weight[i] for i in range(6) if i not in chosen)
        result = {}
        for i in range(6):
            if i not in chosen:
                for k, p in inclusion((*chosen, i), probability * weight[i] / total, remaining - 1).items():
                    result[k] = result.get(k, 0.0) + p
        return result

    exact = np.zeros(6)
    for chosen, probability in inclusion((), 1.0, 3).items():
        exact[list(chosen)] += probability
    draws = 40_000
    hide = Masking(counts, [0, 1, 2, 3], 3, seed=11, rule=rule, mlm_probability=0.5)
    masked = hide(ids.expand(draws, -1), torch.arange(draws))
    found = np.bincount(masked.positions.flatten().numpy(), minlength=6) / draws
    sigma = np.sqrt(exact * (1 - exact) / draws)
    assert (np.abs(found - exact) < 5 * sigma + 1e-9).all(), (found, exact)


def test_eighty_ten_ten():
    ids = blocks(batch=4000, length=42)
    masked = masking(rule="uniform")(ids, torch.arange(4000))
    new, old = masked.input_ids.gather(1, masked.positions), masked.labels
    n = old.numel()
    random_share = 0.1 * (1 - 1 / VOCABULARY)  # a random token that happens to be [MASK] or the original hides itself
    for found, expected in (
        ((new == MASK).double().mean(), 0.8 + 0.1 / VOCABULARY),
        ((new == old).double().mean(), 0.1 + 0.1 / VOCABULARY),
        (((new != MASK) & (new != old)).double().mean(), random_share - 0.1 / VOCABULARY),
    ):
        assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    random_tokens = new[(new != MASK) & (new != old)]
    assert random_tokens.min() == 0
    assert random_tokens.max() == VOCABULARY - 1


def test_a_block_with_too_few_maskable_tokens_keeps_its_shape_and_ignores_the_rest():
    ids = torch.full((2, 40), SEP)
    ids[0, 5], ids[0, 9] = 10, 11
    masked = masking()(ids, torch.arange(2))
    assert masked.positions.shape == (2, 6)
    assert (masked.labels[0] != IGNORED).sum() == 2
    assert (masked.labels[1] == IGNORED).all()
    assert torch.equal(masked.input_ids[1], ids[1])


def test_uniform_numbers_are_uniform_and_uncorrelated_between_neighbouring_draws_and_columns():
    u = masking()._uniform(torch.arange(2000), 200, 1).double()
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        correlation = ((a - 0.5) * (b - 0.5)).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize("bits", [0, -1], ids=["no bit set", "all bits set"])
def test_uniform_numbers_stay_off_both_ends(monkeypatch, bits):
    """At 1 a random token would lie outside the vocabulary, at 0 the logarithm of its logarithm would not be finite."""
    monkeypatch.setattr("potstill.corpus.masking._mix", lambda value: torch.full_like(value, bits))
    rule = masking(token_counts := torch.ones(30522), rule="uniform")
    u = rule._uniform(torch.arange(2), 3, 1)
    assert u.dtype == torch.float32
    assert u.min() > 0
    assert u.max() < 1
    assert (u * rule.random_token_limit).long().max() < len(token_counts)
