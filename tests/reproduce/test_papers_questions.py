"""Cloze questions: what they are made of, and that they are fair."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from potstill.tasks.squad import read_squad
from reproduce.common import Place, run
from reproduce.papers import cloze_questions, questions
from reproduce.papers.cloze_questions import BLANK, Question, baselines, is_fair, names_in, questions_on
from reproduce.runs import Done, Job

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


F1 = {"encoder-teacher": 40, "teacher": 60, "encoder": 30, "one": 52, "average": 54, "separate": 55, "stages": 58}


class Verbs:
    """Takes the place of the runs: keeps the jobs, and writes results whose F1 tells the row."""

    def __init__(self) -> None:
        self.phases: list[dict[str, Job]] = []

    def __call__(self, jobs: list[Job], place: Place) -> list[Done]:
        assert place.runs_per_gpu == 6
        for job in jobs:
            for model in [job.options["model"], *self.teachers(job)]:
                assert model == "encoder" or Path(model).is_dir()  # an earlier phase has made it
        for job in jobs:
            folder = place.work / job.name
            folder.mkdir(parents=True)
            name, _, rest = job.name.partition("-")
            row, _, seed = rest.rpartition("-")
            f1 = F1[row] + int(seed) + (10 if name == "squad" else 0)
            without = {"metrics": {"exact": 1.0, "f1": 50.0 + 2 * int(seed)}} if row == "one" else None
            found = {"metrics": {"exact": f1 / 2, "f1": f1}, "without_teacher": without, "rows": {"train": 9, "dev": 3}}
            (folder / "results.json").write_text(json.dumps(found))
        self.phases.append({job.name: job for job in jobs})
        return [Done(place.work / job.name, 0, 1.0, None) for job in jobs]

    @staticmethod
    def teachers(job: Job) -> list[Path]:
        given = job.options.get("teacher", [])
        return list(given) if isinstance(given, list) else [given]


def test_runs_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = Verbs()
    monkeypatch.setattr(questions, "run_jobs", verbs)
    squad = tmp_path / "xquad.en.json"
    squad.write_text("{}")
    words = ["--model", "encoder", "--text", str(write_text(tmp_path, 30)), "--squad", str(squad), "--seeds", "2"]
    words += ["--train", "40", "--dev", "12", "--work_dir", str(tmp_path / "work"), "--gpus", "0"]
    words += ["--results_dir", str(tmp_path / "results"), "--max_steps", "3"]
    assert run(questions.main, words) == 0
    first, second, last, general_first = verbs.phases
    assert len(first) == 3 + 2  # three teachers although there are two seeds
    assert second["squad-teacher-1"].options["model"] == tmp_path / "work" / "cloze-teacher-1"
    assert len(last) == 2 * 2 * 4
    several = last["squad-separate-1"]
    assert [path.name for path in several.options["teacher"]] == [f"squad-teacher-{n}" for n in (1, 2, 0)]
    assert several.options["model"].name == "squad-teacher-1"
    assert several.options["teacher_heads"] == "separate"
    assert last["cloze-encoder-0"].options["model"] == "encoder"
    assert last["cloze-encoder-0"].options["layers"] == "first"
    assert general_first["squad-stages-1"].options["model"].name == "cloze-one-1"
    assert general_first["squad-stages-1"].options["teacher"].name == "squad-teacher-1"
    assert all(job.more == ("--max_steps", "3") for job in last.values())
    told = capsys.readouterr().out
    assert "| student from the teacher's layers, labels alone | 1.0 (1.0–1.0) | 51.0 (50.0–52.0) |" in told
    assert "| the same with three teachers and a head for each | 27.8 (27.5–28.0) | 55.5 (55.0–56.0) | 32.8" in told
    assert "| no model: nearest sentence |" in told
    assert (
        "- cloze questions, F1 less that of the labels alone, seed by seed: +1.5 (2 of 2 seeds higher) for one" in told
    )
    written = json.loads((tmp_path / "results" / "questions.json").read_text())
    assert written["scores"]["squad"]["average"]["f1"] == [64, 65]


def test_what_is_missing_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--work_dir", str(tmp_path / "work"), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    assert run(questions.main, places) == 0
    assert "--model names no encoder" in capsys.readouterr().out
    assert run(questions.main, [*places, "--model", "encoder", "--task_data", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "--text names no articles" in told
    assert "--squad names no file" in told
    assert run(questions.main, [*places, "--model", "encoder", "--squad", str(tmp_path / "none.json")]) == 1
