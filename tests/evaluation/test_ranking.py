"""Search and the measures of ranked lists, against plain computations on random data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score

from potstill.evaluation import search as search_module
from potstill.evaluation.search import search
from potstill.tasks.ranking import average_precision, ndcg, recall, reciprocal_rank, worst_order


@pytest.mark.parametrize("k", [1, 10, 100, 1000])
def test_search_finds_what_a_full_sort_finds(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "SCORES_AT_A_TIME", 200)  # several blocks of queries
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(17, 8)).astype(np.float32), rng.normal(size=(150, 8)).astype(np.float32)
    blocks = torch.from_numpy(passages).split(64)
    scores, places = search(torch.from_numpy(queries), blocks, k)
    every = queries.astype(np.float64) @ passages.astype(np.float64).T
    expected = np.argsort(-every, axis=1)[:, :k]
    assert np.array_equal(places, expected)
    assert np.allclose(scores, np.take_along_axis(every, expected, 1), atol=1e-5)


def test_equal_scores_keep_the_order_of_the_corpus() -> None:
    queries, passages = torch.ones(3, 2), torch.tensor([[1.0, 0], [2, 0], [1, 0], [2, 0], [0, 1], [0, 2]])
    _, places = search(queries, passages.split(4), 6)
    assert places.tolist() == [[1, 3, 5, 0, 2, 4]] * 3


def ranked(rng: np.random.Generator, grades: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Scores without ties, the relevance of the passages, and the relevance in the order of the scores."""
    count = int(rng.integers(2, 40))
    scores, relevance = rng.permutation(count).astype(float), rng.integers(0, grades, count)
    relevance[rng.integers(count)] = grades - 1
    return scores, relevance, relevance[np.argsort(-scores)].astype(float).tolist()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_of_graded_relevance_is_that_of_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, relevance, gains = ranked(rng, 4)
        judged = relevance[relevance > 0].tolist()
        assert ndcg(gains, judged, k) == pytest.approx(ndcg_score([relevance], [scores], k=k))


def test_average_precision_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, relevance, gains = ranked(rng, 2)
        assert average_precision(gains) == pytest.approx(average_precision_score(relevance, scores))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_reciprocal_rank_and_recall_by_hand(k: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, relevance, gains = ranked(rng, 2)
        first, found = 0, 0
        for rank in range(1, min(k, len(scores)) + 1):
            passage = sorted(range(len(scores)), key=lambda number: -scores[number])[rank - 1]
            if relevance[passage]:
                found += 1
                first = first or rank
        assert reciprocal_rank(gains, k) == (1 / first if first else 0)
        assert recall(gains, int(relevance.sum()), k) == found / relevance.sum()
    assert reciprocal_rank([0.0, 0.0]) == 0
    assert reciprocal_rank([0.0] * 10 + [1.0], 10) == 0
    assert reciprocal_rank([0.0] * 10 + [1.0]) == 1 / 11


def test_a_model_that_scores_all_alike_gains_nothing_from_the_order_of_the_file() -> None:
    relevant = [True, True, False, False, False]
    assert worst_order(np.zeros(5), relevant).tolist() == [2, 3, 4, 0, 1]
    assert worst_order(np.array([1.0, 0, 0, 2, -1]), relevant).tolist() == [3, 0, 2, 1, 4]


def test_ndcg_of_one_passage_by_hand() -> None:
    assert ndcg([0, 0, 2.0], [2.0, 1.0], 10) == pytest.approx((2 / math.log2(4)) / (2 + 1 / math.log2(3)))
