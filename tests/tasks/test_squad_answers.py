import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from test_squad_reading import write
from test_squad_windows import SMALL, SMALL_FOR, TOKENIZERS, one_question

from potstill.errors import PotstillError
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_answers import find_answers
from potstill.tasks.squad_windows import make_windows


@pytest.fixture
def dataset(tmp_path: Path) -> datasets.Dataset:
    return read_squad(write(tmp_path / "it.json")).dataset


def random_logits(windows: datasets.Dataset, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=length) for length in windows["length"]]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_great_logits_at_the_gold_positions_give_the_gold_text(dataset: datasets.Dataset, name: str) -> None:
    windows = make_windows(dataset, TOKENIZERS[name], **SMALL_FOR[name])
    start, end = random_logits(windows, 0), random_logits(windows, 1)
    for number, window in enumerate(windows):
        if window["start_positions"]:
            start[number][window["start_positions"]] += 100
            end[number][window["end_positions"]] += 100
        else:
            start[number][0] += 50
            end[number][0] += 50
    answers = find_answers(dataset, windows, start, end, no_answer=True)
    golds = {row["id"]: (row["answers"]["text"] or [""])[0] for row in dataset}
    assert answers.predictions(0.0) == golds
    assert {id_: best[0].text for id_, best in answers.candidates.items()} == golds


def naive(
    dataset: datasets.Dataset, windows: datasets.Dataset, start: Any, end: Any, longest: int
) -> tuple[dict[str, list[tuple[str, int, float]]], dict[str, float]]:
    """Text, place and score of all the spans of each question, best first, and the score of no answer."""
    spans: dict[str, dict[tuple[int, int], float]] = {id_: {} for id_ in dataset["id"]}
    nulls: dict[str, float] = {}
    for window, starts, ends in zip(windows, start, end, strict=True):
        id_ = dataset[window["example"]]["id"]
        nulls[id_] = min(nulls.get(id_, math.inf), starts[0] + ends[0])
        for i in range(1, window["length"]):
            for j in range(i, min(i + longest, window["length"])):
                if window["answer_mask"][i] and window["answer_mask"][j]:
                    key = window["char_start"][i], window["char_end"][j]
                    spans[id_][key] = max(spans[id_].get(key, -math.inf), starts[i] + ends[j])
    contexts = dict(zip(dataset["id"], dataset["context"], strict=True))
    best = {id_: sorted(found.items(), key=lambda item: -item[1]) for id_, found in spans.items()}
    return {id_: [(contexts[id_][a:b], a, score) for (a, b), score in found] for id_, found in best.items()}, nulls


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("n_best", "longest"), [(20, 30), (1, 1), (5, 4), (2000, 3)])
def test_the_best_spans_are_those_of_all_of_them(
    dataset: datasets.Dataset, name: str, n_best: int, longest: int
) -> None:
    windows = make_windows(dataset, TOKENIZERS[name], **SMALL_FOR[name])
    start, end = random_logits(windows, 2), random_logits(windows, 3)
    # Byte by byte a span of text may be several of tokens; a window gives its best n of these.
    expected, nulls = naive(dataset, windows, start, end, longest)
    answers = find_answers(dataset, windows, start, end, n_best, longest)
    for id_, candidates in answers.candidates.items():
        if name == "bert":
            assert len(candidates) == min(n_best, len(expected[id_]))
        assert 1 <= len(candidates) <= n_best
        for candidate, (text, place, score) in zip(candidates, expected[id_], strict=False):
            assert (candidate.text, candidate.start) == (text, place)
            assert candidate.score == pytest.approx(score)
            if name != "bert":
                break
        assert answers.texts[id_] == expected[id_][0][0]
        assert answers.null_odds[id_] == pytest.approx(nulls[id_] - expected[id_][0][2])
        assert sum(candidate.probability for candidate in candidates) == pytest.approx(1)
        for one, two in pairwise(candidates):
            assert one.probability / two.probability == pytest.approx(math.exp(one.score - two.score))


def test_padded_logits_and_other_types_give_the_same(dataset: datasets.Dataset) -> None:
    windows = make_windows(dataset, TOKENIZERS["bert"], **SMALL)
    start, end = random_logits(windows, 4), random_logits(windows, 5)
    expected = find_answers(dataset, windows, start, end)
    padded = []
    for logits in (start, end):
        padded.append(np.full((len(windows), 40), np.nan))
        for row, values in zip(padded[-1], logits, strict=True):
            row[: len(values)] = values
    assert find_answers(dataset, windows, *padded) == expected
    assert find_answers(dataset, windows, [row.tolist() for row in start], end) == expected


def five_words() -> tuple[datasets.Dataset, datasets.Dataset, int, list[Any], list[Any]]:
    """A question in one window, the position of the first of five words, each a token, and logits of zero."""
    dataset = one_question("Oak cask  of the spirit", "what?")
    windows = make_windows(dataset, TOKENIZERS["bert"], **SMALL)
    (window,) = windows
    assert sum(window["answer_mask"]) == 1 + 5
    start, end = ([np.zeros(window["length"])] for _ in range(2))
    return dataset, windows, window["answer_mask"].index(True, 1), start, end


def test_spans_end_after_they_start_in_the_context_and_are_not_too_long() -> None:
    dataset, windows, context, start, end = five_words()
    start[0][1], end[0][2], start[0][0], end[0][-1] = 99, 99, 99, 99  # question, [CLS], [SEP]
    start[0][context + 3], end[0][context + 2] = 9, 8  # the wrong way round
    start[0][context], end[0][context + 4] = 5, 5
    for longest, text, score in ((30, "the spirit", 14), (5, "the spirit", 14), (1, "the", 9)):
        answers = find_answers(dataset, windows, start, end, max_answer_length=longest)
        assert (answers.texts["q"], answers.candidates["q"][0].score) == (text, score)
    start[0][context + 3] = 0
    for longest, text, score in ((3, "Oak cask  of", 13), (2, "cask  of", 8), (5, "Oak cask  of", 13)):
        answers = find_answers(dataset, windows, start, end, max_answer_length=longest)
        assert (answers.texts["q"], answers.candidates["q"][0].score) == (text, score)
    assert answers.null_odds["q"] == 99 - 13


def test_of_equal_scores_the_earliest_and_shortest_span_wins() -> None:
    dataset, windows, context, start, end = five_words()
    start[0][[context + 1, context + 2]] = end[0][[context + 2, context + 3]] = 1
    candidates = find_answers(dataset, windows, start, end).candidates["q"]
    assert [it.text for it in candidates[:4]] == ["cask  of", "cask  of the", "of", "of the"]


def test_the_threshold_decides_between_no_answer_and_the_best() -> None:
    dataset, windows, context, start, end = five_words()
    start[0][0], end[0][0] = 2, 1
    start[0][context + 1] = end[0][context + 1] = 1
    answers = find_answers(dataset, windows, start, end, n_best=3, no_answer=True)
    assert answers.null_odds == {"q": 1.0}
    assert answers.predictions() == answers.predictions(1.0) == {"q": "cask"}
    assert answers.predictions(0.5) == {"q": ""}
    first, second, *others = answers.candidates["q"]
    assert (first.text, first.start, first.score, len(others)) == ("", None, 3, 2)
    assert (second.text, second.start, second.score) == ("cask", 4, 2)
    assert first.probability / second.probability == pytest.approx(math.e)


def test_the_score_of_no_answer_is_the_least_over_the_windows(dataset: datasets.Dataset) -> None:
    dataset = dataset.select([0])
    windows = make_windows(dataset, TOKENIZERS["bert"], **SMALL)
    assert len(windows) > 2
    start, end = ([np.zeros(length) for length in windows["length"]] for _ in range(2))
    for number in range(len(windows)):
        start[number][0] = 10 - number % 3
    assert find_answers(dataset, windows, start, end).null_odds == {"s1": 8.0}


def test_a_context_without_text_has_no_answer() -> None:
    dataset = one_question(" ", "what?")
    windows = make_windows(dataset, TOKENIZERS["bert"], **SMALL)
    answers = find_answers(dataset, windows, [np.zeros(5)], [np.zeros(5)])
    assert answers.texts == {"q": ""}
    assert answers.null_odds == {"q": math.inf}
    assert [(candidate.text, candidate.probability) for candidate in answers.candidates["q"]] == [("", 1.0)]


def test_what_does_not_fit_the_windows_is_an_error(dataset: datasets.Dataset) -> None:
    windows = make_windows(dataset, TOKENIZERS["bert"], **SMALL)
    start, end = random_logits(windows, 6), random_logits(windows, 7)
    with pytest.raises(PotstillError, match="give both for each window"):
        find_answers(dataset, windows, start, end[:-1])
    with pytest.raises(PotstillError, match=r"end logits of window 3 have the shape \(4,\)"):
        find_answers(dataset, windows, start, [*end[:3], end[3][:4], *end[4:]])
    with pytest.raises(PotstillError, match=r"start logits of window 1 have the shape \(\)"):
        find_answers(dataset, windows, [start[0], 1.0, *start[2:]], end)
    with pytest.raises(PotstillError, match="start logits of window 2 are not all finite"):
        find_answers(dataset, windows, [*start[:2], np.full(32, np.nan), *start[3:]], end)
    few = windows.filter(lambda window: window["example"] != 2)
    with pytest.raises(PotstillError, match="Question 3 of 8 has no window"):
        find_answers(dataset, few, random_logits(few, 8), random_logits(few, 9))
    with pytest.raises(PotstillError, match="at least 1"):
        find_answers(dataset, windows, start, end, n_best=0)
