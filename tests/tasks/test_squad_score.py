import random
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_squad_reading import write

from potstill.errors import PotstillError
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_score import best_thresholds, exact_match, f1, normalise_answer, score_answers

ANSWERS = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int32"))}
FEATURES = datasets.Features({"id": datasets.Value("string"), "answers": ANSWERS})


def golds(**answers: list[str]) -> datasets.Dataset:
    rows = [{"id": id_, "answers": {"text": texts, "answer_start": [0] * len(texts)}} for id_, texts in answers.items()]
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Still", "still"),
        ("a cask, an oak and the spirit", "cask oak and spirit"),
        ("theatre another Ana", "theatre another ana"),  # articles are words
        ("U.S.", "us"),
        ("the U.S.A.", "usa"),
        ("A.", ""),  # an article once the stop has gone
        ("A.A.", "aa"),
        ("t-h-e", ""),
        ("the-spirit", "thespirit"),  # a hyphen goes before words are looked at
        ("5,000 litres!", "5000 litres"),
        ("  white \t\n space\u00a0\u3000ends ", "white space ends"),
        ('`quoted\' "twice"', "quoted twice"),
        ("„Hogshead“", "„hogshead“"),  # beyond ASCII punctuation stays
        ("12–15 a—b", "12–15 —b"),  # but borders on words
        ("oak—the—cask", "oak— —cask"),
        ("STRASSE Straße ÉTÉ", "strasse straße été"),
        ("酒桶。", "酒桶。"),
        ("a桶", "a桶"),
        ("$%&", ""),
        ("the a an", ""),
        ("", ""),
    ],
)
def test_what_counts_of_an_answer(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal
    assert normalise_answer(normal) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "overlap"),
    [
        ("the pot still", "Pot still.", 1, 1),
        ("pot", "pot still", 0, 2 / 3),
        ("still pot", "pot still", 0, 1),  # a bag has no order
        ("pot pot still", "pot still still", 0, 2 / 3),  # but counts
        ("copper", "oak", 0, 0),
        ("", "oak", 0, 0),
        ("the", "oak", 0, 0),
        ("oak", "", 0, 0),
        ("", "", 1, 1),
        ("The", "an", 1, 1),
        ("a b c d", "b", 0, 0.5),
        ("酒桶", "酒桶。", 0, 0),
    ],
)
def test_exact_match_and_f1(prediction: str, gold: str, exact: float, overlap: float) -> None:
    assert exact_match(prediction, gold) == exact
    assert f1(prediction, gold) == pytest.approx(overlap)
    assert f1(gold, prediction) == pytest.approx(overlap)


def test_a_question_counts_with_its_best_gold_answer() -> None:
    dataset = golds(q=["5,000 litres", "5,000", "litres of spirit"])
    assert score_answers(dataset, {"q": "the 5000"}) == {"exact": 100, "f1": 100, "total": 1, "missing": 0}
    result = score_answers(dataset, {"q": "spirit"})
    assert (result["exact"], result["f1"]) == (0, 50)


def test_gold_answers_of_nothing_but_articles_count_only_if_there_is_no_other() -> None:
    assert score_answers(golds(q=["The"]), {"q": "a"})["f1"] == 100
    assert score_answers(golds(q=["The"]), {"q": ""})["exact"] == 100
    assert score_answers(golds(q=["The", "oak"]), {"q": "a"})["exact"] == 0
    assert "NoAns_total" not in score_answers(golds(q=["The"]), {"q": "a"})  # it has an answer


def test_questions_without_an_answer_are_right_when_not_answered() -> None:
    dataset = golds(a=["oak cask"], b=["copper"], c=[], d=[], e=[])
    result = score_answers(dataset, {"a": "oak", "b": "", "c": "", "d": "copper", "e": ""})
    assert result == {
        "exact": 40,
        "f1": pytest.approx(100 * (2 / 3 + 2) / 5),
        "total": 5,
        "missing": 0,
        "HasAns_exact": 0,
        "HasAns_f1": pytest.approx(100 / 3),
        "HasAns_total": 2,
        "NoAns_exact": pytest.approx(200 / 3),
        "NoAns_f1": pytest.approx(200 / 3),
        "NoAns_total": 3,
    }
    assert "HasAns_exact" not in score_answers(golds(c=[]), {"c": ""})


def test_missing_predictions_count_nothing_and_are_counted() -> None:
    result = score_answers(golds(a=["oak"], b=["copper"], c=[], d=[]), {"a": "oak", "c": ""})
    assert (result["exact"], result["f1"], result["missing"], result["total"]) == (50, 50, 2, 4)
    assert (result["HasAns_exact"], result["NoAns_exact"]) == (50, 50)
    assert score_answers(golds(a=["oak"]), {})["missing"] == 1


def test_what_cannot_be_scored_is_an_error() -> None:
    dataset = golds(a=["oak"])
    with pytest.raises(
        PotstillError, match="2 predictions are for questions that are not in the data, the first for 'x'"
    ):
        score_answers(dataset, {"a": "oak", "x": "oak", "y": ""})
    with pytest.raises(PotstillError, match="'a' is None, not text"):
        score_answers(dataset, {"a": None})  # type: ignore[dict-item]
    with pytest.raises(PotstillError, match="no question"):
        score_answers(dataset.select([]), {})
    for odds in ({}, {"a": float("nan")}):
        with pytest.raises(PotstillError, match="'a' has an answer but no odds"):
            best_thresholds(dataset, {"a": "oak"}, odds)


def test_the_gold_answers_themselves_score_100(tmp_path: Path) -> None:
    dataset = read_squad(write(tmp_path / "it.json")).dataset
    for choice in (0, -1):
        predictions = {row["id"]: (row["answers"]["text"] or [""])[choice] for row in dataset}
        result = score_answers(dataset, predictions)
        assert {name: value for name, value in result.items() if not name.endswith("total")} == {
            "exact": 100, "f1": 100, "missing": 0, "HasAns_exact": 100, "HasAns_f1": 100, "NoAns_exact": 100,
            "NoAns_f1": 100,
        }  # fmt: skip
        assert (result["total"], result["HasAns_total"], result["NoAns_total"]) == (8, 7, 1)


@pytest.mark.parametrize("seed", range(30))
def test_the_best_threshold_is_that_of_trying_all(seed: int) -> None:
    rng = random.Random(seed)
    words = ["oak", "cask", "copper", "the"]
    answers: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    odds: dict[str, float] = {}
    for number in range(rng.randint(1, 25)):
        id_ = f"q{number}"
        answers[id_] = [" ".join(rng.choices(words, k=2)) for _ in range(rng.choice((0, 1, 2)))]
        if rng.random() < 0.9:
            texts[id_] = " ".join(rng.choices(words, k=2))
            odds[id_] = rng.choice((rng.gauss(0, 3), float(rng.randint(-2, 2))))  # some are equal
    dataset = golds(**answers)
    result = best_thresholds(dataset, texts, odds)

    def at(threshold: float) -> dict[str, Any]:
        return score_answers(dataset, {id_: "" if odds[id_] > threshold else text for id_, text in texts.items()})

    tried = {threshold: at(threshold) for threshold in (-1e9, *odds.values())}
    for metric in ("exact", "f1"):
        best = max(scores[metric] for scores in tried.values())
        assert result[f"best_{metric}"] == pytest.approx(best)
        assert at(result[f"best_{metric}_thresh"])[metric] == pytest.approx(best)
        lowest = min(threshold for threshold, scores in tried.items() if scores[metric] > best - 1e-6)
        assert lowest in (result[f"best_{metric}_thresh"], -1e9)
        if lowest == -1e9:
            assert result[f"best_{metric}_thresh"] < min(odds.values(), default=1)
