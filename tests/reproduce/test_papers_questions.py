"""Cloze questions: what they are made of, and that they are fair."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from potstill.tasks.squad import read_squad
from reproduce.common import run
from reproduce.papers import cloze_questions
from reproduce.papers.cloze_questions import BLANK, Question, baselines, is_fair, names_in, questions_on

FIRST = ("Anna", "Bert", "Clara", "Dora", "Emil", "Frieda", "Gustav", "Hedwig")
LAST = ("Abel", "Bauer", "Conrad", "Dorn", "Engel", "Falk", "Graf")


def article(number: int, sentences: int = 24) -> str:
    """An article about a town, each of whose sentences names two of its inhabitants and the town."""
    rng = random.Random(number)
    people = [f"{first} {LAST[(place + number) % len(LAST)]}" for place, first in enumerate(FIRST)]
    town = f"Old Town{number}"
    lines = [
        "In the year {} the merchant {} sold a house beside the river to {}, and nobody in {} was surprised.".format(
            1700 + n, *rng.sample(people, 2), town
        )
        for n in range(sentences)
    ]
    return "\n".join([town, " ".join(lines[: sentences // 2]), " ".join(lines[sentences // 2 :])])


def write_text(folder: Path, count: int) -> Path:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": article(number)}) + "\n" for number in range(count)))
    return path


def test_names_are_capitalised_words_inside_sentences() -> None:
    text = "Later the Duke of York met Mary Stuart. She left on Monday, and Paris's mayor wrote to the Bay of Naples."
    assert names_in(text) == ["Duke of York", "Mary Stuart", "Paris", "Bay of Naples"]


def test_a_question_has_its_name_blanked_and_its_context_does_not_contain_the_sentence() -> None:
    text = article(3)
    found = list(questions_on(text, random.Random(0)))
    assert len({one.answer for one in found}) == len(found) > 3
    for one in found:
        assert one.text.count(BLANK) >= 1
        assert one.answer not in one.text
        assert one.answer in one.context
        assert one.context in text
        sentence = one.text.replace(BLANK, one.answer)
        assert sentence in text
        assert sentence not in one.context
        assert "Town" not in one.answer  # which the title has
        others = {name for name in one.names() if name != one.answer}
        assert len(others) >= 4
        assert max(map(one.names().count, others)) >= one.names().count(one.answer)


def test_unfair_questions_are_left_out() -> None:
    context = "It was in Rome that the Duke of York met Anna, then Bert, then Clara, and Dora, and Dora again."
    assert is_fair(Question(f"Nobody has seen {BLANK} again.", context, "Rome"))
    assert not is_fair(Question(f"Nobody in York has seen {BLANK}.", context, "Duke of York"))
    assert not is_fair(Question(f"Nobody has seen {BLANK} again.", context, "Dora"))  # the most frequent name
    assert not is_fair(Question(f"Nobody but Anna and Bert has seen {BLANK}.", context, "Rome"))  # three others
    assert not is_fair(Question(f"Nobody has seen {BLANK} again.", context + " Oh, Rome Street.", "Rome"))


def test_files_are_squads_and_articles_are_not_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = write_text(tmp_path, 30), tmp_path / "out"
    words = ["--text", str(text), "--output_dir", str(out), "--train", "40", "--dev", "12"]
    assert run(cloze_questions.main, words) == 0
    assert "40 questions to train on, 12 to score" in capsys.readouterr().out
    titles = []
    for split, count in (("train", 40), ("dev", 12)):
        data = read_squad(out / f"{split}.json").dataset
        assert len(data) == count
        titles.append(set(data["title"][:]))
    assert not titles[0] & titles[1]
    again = tmp_path / "again"
    words[3] = str(again)
    assert run(cloze_questions.main, words) == 0
    assert (again / "train.json").read_bytes() == (out / "train.json").read_bytes()
    figures = baselines(out / "dev.json")
    assert figures.keys() == {"first", "most frequent", "nearest sentence"}
    assert all(scores["exact"] < 60 for scores in figures.values())


def test_too_little_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: Any) -> str:
        assert run(cloze_questions.main, [*map(str, words)]) == 1
        return capsys.readouterr().err

    text = write_text(tmp_path, 2)
    message = told("--text", text, "--output_dir", tmp_path / "out")
    assert "22,000 are wanted: give more text, or lower --train and --dev" in message
    assert "There is no file" in told("--text", tmp_path / "none.jsonl", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
