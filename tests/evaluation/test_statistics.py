"""Medians, macro scores, retention and ranges against plain computations on random scores."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from evaluation_samples import run_result

from potstill.errors import PotstillError
from potstill.evaluation.notes import notes
from potstill.evaluation.results import Plan, RunResult
from potstill.evaluation.statistics import (
    Comparison,
    Scores,
    beyond_spread,
    chance_beyond_spread,
    compare_runs,
    retention,
)

TASKS = ["cola", "rte", "sst2", "wnli", "imdb"]


def measured(*scores: float) -> Scores:
    return Scores(dict(enumerate(scores)))


def compared(
    table: np.ndarray,
    tasks: list[str] = TASKS,
    drop: set[tuple[int, int, int]] = frozenset(),
    absent: dict[str, str] | None = None,
    reference: str | None = None,
) -> Comparison:
    """Compare (models, tasks, seeds) scores, of which some runs are left out."""
    models, _, seeds = table.shape
    plan = Plan([(f"m{model}", f"/m{model}") for model in range(models)], tasks, absent or {}, list(range(seeds)))
    runs = [
        run_result(f"m{model}", tasks[task], seed, float(table[model, task, seed]))
        for model, task, seed in np.ndindex(*table.shape)
        if (model, task, seed) not in drop and tasks[task] not in plan.absent
    ]
    rng = np.random.default_rng(np.random.randint(2**31))
    return compare_runs(plan, [runs[i] for i in rng.permutation(len(runs))], reference)


@pytest.mark.parametrize("seeds", [1, 2, 5, 6])
def test_medians_and_macro(seeds: int) -> None:
    table = np.random.default_rng(np.random.randint(2**31)).uniform(0, 100, (3, len(TASKS), seeds))
    comparison = compared(table)
    for model, task in np.ndindex(3, len(TASKS)):
        ordered = sorted(table[model, task])
        middle = (ordered[(seeds - 1) // 2] + ordered[seeds // 2]) / 2
        scores = comparison.scores[f"m{model}", TASKS[task]]
        assert scores.value == pytest.approx(middle)
        assert scores.by_seed == dict(enumerate(table[model, task]))
    whole, rest = comparison.macros
    assert whole.tasks == ("cola", "rte", "sst2", "wnli")  # IMDb is not of GLUE
    assert rest.tasks == ("cola", "rte", "sst2")
    for column, number in ((whole, 4), (rest, 3)):
        for model in range(3):
            macro = column.by_model[f"m{model}"]
            assert macro.value == pytest.approx(np.median(table[model, :number].mean(axis=0)))
            assert min(macro.by_seed.values()) <= macro.value <= max(macro.by_seed.values())
            assert [macro.by_seed[seed] for seed in range(seeds)] == pytest.approx(table[model, :number].mean(axis=0))


def test_a_macro_score_lies_in_its_range() -> None:
    # Of which the mean of the tasks' medians, 60, does not: each seed is low on another task.
    table = np.array([[[0.0, 60.0, 61.0], [60.0, 0.0, 61.0], [60.0, 61.0, 0.0], [50.0, 50.0, 50.0]]] * 2)
    tasks = ["cola", "rte", "sst2", "imdb"]
    macro = compared(table, tasks).macros[0].by_model["m0"]
    assert np.median(table[0, :3], axis=1).mean() == 60
    assert sorted(macro.by_seed.values()) == pytest.approx([40, 121 / 3, 122 / 3])
    assert macro.value == pytest.approx(121 / 3)


def test_the_macro_is_over_tasks_that_all_models_have_complete() -> None:
    table = np.random.default_rng(np.random.randint(2**31)).uniform(0, 100, (2, len(TASKS), 3))
    comparison = compared(table, drop={(1, 1, 2)})
    assert [column.tasks for column in comparison.macros] == [("cola", "sst2", "wnli"), ("cola", "sst2")]
    assert comparison.macros[0].by_model["m0"].value == pytest.approx(np.median(table[0, [0, 2, 3]].mean(axis=0)))
    assert comparison.missing("m1", "rte") == [2]
    assert comparison.missing("m0", "rte") == []
    assert comparison.scores["m1", "rte"].by_seed == {0: table[1, 1, 0], 1: table[1, 1, 1]}

    all_of_rte = {(1, 1, seed) for seed in range(3)}
    assert ("m1", "rte") not in compared(table, drop=all_of_rte).scores
    assert compared(table, drop=all_of_rte).macros[0].tasks == ("cola", "sst2", "wnli")
    assert [column.title for column in compared(table, absent={"wnli": "gone"}).macros] == ["GLUE macro"]
    # Of one task there is no macro score, and with WNLI left out one remains.
    assert [column.tasks for column in compared(table, absent={"cola": "", "rte": ""}).macros] == [("sst2", "wnli")]
    assert compared(table, absent={"cola": "", "rte": "", "wnli": ""}).macros == ()
    assert compared(table, drop={(1, 0, 0), (0, 1, 0), (0, 2, 0)}).macros == ()


def test_only_what_was_planned_counts() -> None:
    plan = Plan([("a", "/a")], ["rte", "sst2"], {"sst2": "gone"}, [1, 2])
    planned = [run_result("a", "rte", 1, 50.0)]
    others = [run_result("b", "rte", 1), run_result("a", "rte", 3), run_result("a", "sst2", 1), run_result("a", "cola")]
    comparison = compare_runs(plan, [*others, *planned])
    assert comparison.scores == {("a", "rte"): Scores({1: 50.0})}
    assert comparison.runs == tuple(planned)
    assert comparison.unplanned == tuple(others)
    assert comparison.titles == {"rte": "RTE", "sst2": "SST-2"}


def test_titles_are_those_of_the_runs_where_there_are_any() -> None:
    runs: list[RunResult] = [run_result("a", "own", 1, title="Own Task")]
    comparison = compare_runs(Plan([("a", "/a")], ["own", "stsb", "imdb", "else"], {}, [1]), runs)
    assert list(comparison.titles.values()) == ["Own Task", "STS-B", "IMDb", "else"]


def test_reference() -> None:
    table = np.ones((3, len(TASKS), 1))
    assert compared(table).reference == "m0"
    assert compared(table, reference="m2").reference == "m2"
    with pytest.raises(PotstillError, match="no model 'm9' to be the reference: choose from m0, m1, m2"):
        compared(table, reference="m9")


@pytest.mark.parametrize(
    ("value", "reference", "kept"),
    [(45.0, 60.0, 75.0), (60.0, 45.0, 400 / 3), (-3.0, 60.0, -5.0), (0.0, 60.0, 0.0), (50, 0.0, None), (-2, -4, None)],
)
def test_retention(value: float, reference: float, kept: float | None) -> None:
    assert retention(value, reference) == (None if kept is None else pytest.approx(kept))


def test_beyond_the_spread() -> None:
    assert beyond_spread(measured(1, 2, 3), measured(4, 5, 6)) is True
    assert beyond_spread(measured(9, 5), measured(4, 3, 1)) is True
    assert beyond_spread(measured(1, 4), measured(2, 3)) is False
    assert beyond_spread(measured(2, 3), measured(1, 4)) is False
    assert beyond_spread(measured(1, 2), measured(2, 3)) is False  # they touch
    assert beyond_spread(measured(1), measured(2, 3)) is None
    assert beyond_spread(measured(2, 3), measured(1)) is None


@pytest.mark.parametrize(("seeds", "others"), [(2, 2), (3, 3), (4, 4), (2, 5), (4, 3)])
def test_chance_by_counting_all_orders(seeds: int, others: int) -> None:
    ranks = set(range(seeds + others))
    splits = [(set(one), ranks - set(one)) for one in itertools.combinations(ranks, seeds)]
    apart = sum(beyond_spread(measured(*one), measured(*other)) is True for one, other in splits)
    assert chance_beyond_spread(seeds, others) == pytest.approx(float(Fraction(apart, len(splits))))
    assert chance_beyond_spread(seeds, seeds) == pytest.approx(2 / math.comb(2 * seeds, seeds))


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ((0.0, -3.4, 82.9), "m1 did not learn CoLA with seeds 0, 1 (0.0, -3.4; its best seed 82.9)"),
        ((70.0, 30.0, 65.0), "m1 did not learn CoLA with seed 1 (30.0; its best seed 70.0)"),
        ((70.0, 36.0, 65.0), None),  # half as good is a spread
        ((0.0, 19.0, 5.0), None),  # no seed learned for certain
    ],
)
def test_runs_that_did_not_learn_are_told_first(scores: tuple[float, ...], told: str | None) -> None:
    table = np.full((2, 2, 3), 80.0)
    table[1, 0] = scores
    written = notes(compared(table, tasks=["cola", "rte"]))
    assert any("did not learn" in note for note in written) is (told is not None)
    if told is not None:
        assert written[0].startswith(told)
        assert written[0].endswith("give more --seeds or a lower --learning_rate.")
