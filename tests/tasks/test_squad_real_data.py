"""XQuAD through reading, windows, answers and scores, where POTSTILL_TEST_DATA names a folder that holds it.

Expected there: `xquad/xquad.{en,de,es,zh}.json`, as published.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from potstill.demo.demo import demo
from potstill.tasks.squad import read_squad, split_by_title
from potstill.tasks.squad_answers import find_answers
from potstill.tasks.squad_score import score_answers
from potstill.tasks.squad_windows import make_windows

DATA = os.environ.get("POTSTILL_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="POTSTILL_TEST_DATA names no folder of real data")
TEACHER = Path(demo.__code__.co_filename).parent / "assets" / "teacher"


@pytest.mark.parametrize("language", ["en", "de", "es", "zh"])
def test_the_gold_answers_score_100(language: str) -> None:
    squad = read_squad(Path(DATA or "", "xquad", f"xquad.{language}.json"))
    assert (len(squad.dataset), squad.has_impossible) == (1190, False)
    result = score_answers(squad.dataset, {row["id"]: row["answers"]["text"][0] for row in squad.dataset})
    assert result == {"exact": 100, "f1": 100, "total": 1190, "missing": 0}
    rest, held_out = split_by_title(squad.dataset, 0.25, seed=0)
    assert len(set(held_out["title"])) == 12
    assert not set(rest["title"]) & set(held_out["title"])


def test_gold_positions_give_gold_answers_wherever_these_are_whole_tokens() -> None:
    dataset = read_squad(Path(DATA or "", "xquad", "xquad.en.json")).dataset
    windows = make_windows(dataset, AutoTokenizer.from_pretrained(TEACHER), 128, 48, 32)
    start, end = ([np.zeros(length, np.float32) for length in windows["length"]] for _ in range(2))
    aligned, held = set(), set()
    for number, window in enumerate(windows):
        row, first, last = dataset[window["example"]], window["start_positions"], window["end_positions"]
        if not first:
            continue
        start[number][first] = end[number][last] = 100
        held.add(row["id"])
        begin = row["answers"]["answer_start"][0]
        if (window["char_start"][first], window["char_end"][last]) == (begin, begin + len(row["answers"]["text"][0])):
            aligned.add(row["id"])
    assert len(held) == len(dataset)  # every answer is in a window
    assert len(aligned) > 0.99 * len(dataset)
    texts = find_answers(dataset, windows, start, end, max_answer_length=80).texts
    wrong = {row["id"] for row in dataset if texts[row["id"]] != row["answers"]["text"][0]}
    assert not wrong & aligned
