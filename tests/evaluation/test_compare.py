"""What `potstill compare` prints: figures where they belong, and plain words where there are none."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import Write

from potstill import compare
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation.tables import WIDTH
from potstill.finetuning.result import RunResult
from potstill.tasks.glue import GLUE

pytestmark = pytest.mark.usefixtures("signals_restored")


def tables(markdown: str) -> list[dict[str, dict[str, str]]]:
    """Return the tables of a Markdown text as model → column → cell."""
    read = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines())
        assert all(len(row) == len(header) for row in rows)
        read.append({row[0].strip("| "): dict(zip(header[1:], row[1:], strict=True)) for row in rows})
    return read


def words(text: str) -> str:
    """Undo the wrapping of notes."""
    return " ".join(text.split())


def random_scores(models: list[str], tasks: list[str], seeds: int) -> dict[tuple[str, str], dict[int, float]]:
    return {
        (model, task): {seed: random.uniform(20, 99) for seed in range(seeds)} for model in models for task in tasks
    }


def test_every_figure_is_in_its_cell(write: Write) -> None:
    models, tasks = ["teacher", "student", "other"], [*GLUE, "imdb"]
    scores = random_scores(models, tasks, 3)
    folder = str(write(scores))
    shown, kept = tables(compare(folder, "markdown"))
    text = compare(folder)
    for (model, task), by_seed in scores.items():
        title = GLUE[task].title if task in GLUE else "IMDB"
        low, median, high = sorted(by_seed.values())
        assert shown[model][title] == f"{median:.1f} ({low:.1f}–{high:.1f})"
        assert f"{low:.1f}–{high:.1f}" in text
        theirs = scores["teacher", task].values()
        if model != "teacher":
            apart = high < min(theirs) or low > max(theirs)
            assert kept[model][title] == ("\\*" if apart else "") + f"{100 * median / statistics.median(theirs):.1f}"
    macro = {}
    for model in models:
        low, macro[model], high = sorted(
            statistics.mean(scores[model, task][seed] for task in GLUE) for seed in range(3)
        )
        assert shown[model]["GLUE macro"] == f"{macro[model]:.1f} ({low:.1f}–{high:.1f})"
    assert kept["other"]["GLUE macro"].strip("\\*") == f"{100 * macro['other'] / macro['teacher']:.1f}"
    assert "teacher" not in kept
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "Not included, because incomplete or not in GLUE: IMDB." in words(text)
    assert "10 % for 3 seeds against 3" in words(text)  # 2 of the 20 ways to give 6 ranks to two models
    assert "over the other 8 tasks; WNLI is too small" in words(text)


def test_text_in_full(write: Write) -> None:
    scores = {
        ("teacher", "cola"): {1: 50.0, 2: 52.0, 3: 51.0},
        ("teacher", "rte"): {1: 60.0, 2: 62.0, 3: 70.0},
        ("student", "cola"): {1: 40.0, 2: 44.0, 3: 41.0},
        ("student", "rte"): {1: 61.0, 2: 59.0, 3: 58.0},
    }
    assert compare(str(write(scores))).splitlines() == [
        "Score in percent (median of 3 seeds, lowest–highest)",
        "          GLUE macro       CoLA        RTE",
        " ─────────────────────────────────────────",
        " teacher        57.0       51.0       62.0",
        "           55.0–60.5  50.0–52.0  60.0–70.0",
        " student        50.5       41.0       59.0",
        "           49.5–51.5  40.0–44.0  58.0–61.0",
        "",
        "Retention: percent of the score of teacher",
        "          GLUE macro   CoLA   RTE",
        " ────────────────────────────────",
        " student       *88.6  *80.4  95.2",
        "",
        "· GLUE macro: median over the seeds of each seed's mean over 2 of the 9 tasks, for all models: CoLA,",
        "  RTE.",
        "· * Beyond the spread: the ranges over the seeds of the model and of teacher do not overlap. If two",
        "  models do not differ, chance alone sets this mark in each cell with a probability of 10 % for 3",
        "  seeds against 3.",
        "· 12 runs on an abacus, torch 2.13.0.",
        "· 2026-11-22, 24 min in total: train 20 min, evaluate 4 min.",
    ]


def test_absent_and_missing(write: Write) -> None:
    scores = random_scores(["teacher", "student"], ["cola", "rte", "sst2"], 3)
    scores["student", "rte"].pop(1)
    for seed in (0, 2):
        scores["student", "sst2"].pop(seed)
    folder = write(
        scores,
        models=[("teacher", "/t"), ("student", "/s"), ("unborn", "/u")],
        tasks=["cola", "rte", "sst2", "qnli", "stsb"],
        absent={"qnli": "no QNLI/train.tsv in glue."},
    )
    text = compare(str(folder), "markdown")
    shown, kept = tables(text)
    assert "QNLI" not in shown["teacher"]
    assert "- QNLI is absent, not 0: no QNLI/train.tsv in glue.\n" in text
    assert set(shown["unborn"].values()) == set(kept["unborn"].values()) == {"–"}
    assert {row["STS-B"] for row in shown.values()} == {"–"}
    low, high = sorted(scores["student", "rte"].values())
    assert shown["student"]["RTE"] == f"†{(low + high) / 2:.1f} ({low:.1f}–{high:.1f})"
    assert shown["student"]["SST-2"] == f"†{scores['student', 'sst2'][1]:.1f}"  # no range
    assert kept["student"]["RTE"].startswith("†")
    assert not kept["student"]["CoLA"].startswith("†")
    assert (
        "- 21 of 36 runs are missing: teacher on STS-B; student on RTE (seed 1), SST-2 (seeds 0, 2), STS-B; "
        "unborn on all tasks.\n" in text
    )
    assert "One seed has no median and no spread: student on SST-2." in text
    assert "No GLUE macro" in text  # no task is complete for all three
    assert "20 % for 2 seeds against 3, 10 % for 3 seeds against 3" in text


def test_nothing_is_there_yet(write: Write) -> None:
    folder = str(write({("teacher", "rte"): {}}, seeds=[1, 2]))
    assert tables(compare(folder, "markdown")) == [{"teacher": {"RTE": "–"}}]
    assert "2 of 2 runs are missing: teacher on all tasks." in compare(folder)
    assert json.loads(compare(folder, "json"))["models"]["teacher"]["tasks"] == {"rte": None}


def test_all_tasks_are_absent(write: Write) -> None:
    text = compare(str(write({("teacher", "rte"): {}}, seeds=[1], absent={"rte": "no file"})))
    assert text.startswith("· RTE is absent, not 0: no file.")
    assert "missing" not in text


def test_one_seed_has_no_spread(write: Write) -> None:
    text = compare(str(write(random_scores(["teacher", "student"], ["cola", "rte"], 1))), "markdown")
    assert "Score in percent (1 seed: no spread)" in text
    assert "1 seed: no spread, so nothing here shows whether a difference is more than chance." in text
    for table in tables(text):
        assert all(re.fullmatch(r"\d+\.\d", cell) for row in table.values() for cell in row.values()), table
    assert "median" not in text


def test_reference_of_zero_or_less(write: Write) -> None:
    scores = {
        ("teacher", "cola"): {1: 0.0, 2: 0.0},
        ("student", "cola"): {1: 30.0, 2: 20.0},
        ("teacher", "stsb"): {1: -5.0, 2: -4.0},
        ("student", "stsb"): {1: -4.5, 2: 3.0},
        ("teacher", "rte"): {1: 60.0, 2: 50.0},
        ("student", "rte"): {1: -6.0, 2: -5.0},
    }
    text = compare(str(write(scores)), "markdown")
    kept = tables(text)[1]["student"]
    assert (kept["CoLA"], kept["STS-B"], kept["RTE"]) == ("\\*–", "–", "\\*-10.0")
    assert "Retention is not defined where teacher scores 0 or less: CoLA, STS-B." in text
    assert not re.search(r"\b(inf|nan)\b", text, re.IGNORECASE)


def test_another_reference(write: Write) -> None:
    folder = str(write(random_scores(["teacher", "student"], ["cola", "rte"], 2)))
    shown, kept = tables(compare(folder, "markdown", reference="student"))
    assert list(shown) == ["teacher", "student"]
    assert list(kept) == ["teacher"]
    with pytest.raises(PotstillError, match="no model 'pupil'"):
        compare(folder, reference="pupil")


def test_one_model_has_nothing_to_be_compared_with(write: Write) -> None:
    text = compare(str(write({("teacher", "cola"): {1: 0.0, 2: 1.0}})), "markdown")
    assert len(tables(text)) == 1
    assert "spread" not in text
    assert "Retention" not in text


def test_metrics_beside_the_scores(write: Write) -> None:
    def change(run: RunResult) -> RunResult:
        metrics: dict[str, Any] = {
            "mrpc": {"accuracy": run.score - 1, "f1": run.score + 1, "score": run.score},
            "stsb": {"pearson": run.score + 2, "spearman": run.score - 2, "score": run.score},
            "mnli": {
                "dev_matched": {"accuracy": 1.0, "score": run.score - 3},
                "dev_mismatched": {"accuracy": 1.0, "score": run.score + 3},
            },
            "squad": {"exact": run.score / 2, "f1": run.score, "total": 10, "missing": 0, "best_f1": 1.0},
            "rte": {"accuracy": run.score, "score": run.score},
        }
        return dataclasses.replace(run, metrics=metrics[run.task])

    scores = {("teacher", task): {1: 60.0, 2: 80.0, 3: 70.0} for task in ("mrpc", "stsb", "mnli", "squad", "rte")}
    folder = str(write(scores, change, models=[("teacher", "/t"), ("unborn", "/u")]))
    shown = tables(compare(folder, "markdown"))[-1]
    assert shown == {
        "teacher": {
            "MRPC (acc/F1)": "69.0/71.0",
            "STS-B (Pearson/Spearman)": "72.0/68.0",
            "MNLI (m/mm)": "67.0/73.0",
            "SQUAD (EM/F1)": "35.0/70.0",
        },
        "unborn": {"MRPC (acc/F1)": "–", "STS-B (Pearson/Spearman)": "–", "MNLI (m/mm)": "–", "SQUAD (EM/F1)": "–"},
    }
    assert "69.0/71.0" in compare(folder)


def test_how_runs_differ_is_told(write: Write) -> None:
    rates = {"teacher": 2e-5, "student": 5e-5, "student (D)": 2e-5}

    def change(run: RunResult) -> RunResult:
        options = run.hyperparameters | {"learning_rate": rates[run.model], "warmup": 0.1, "batch": 16 + run.seed}
        options |= {"shape": {"depth": 3, "width": 4}}
        tuned = {"searched": {"learning_rate": [2e-5, 5e-5]}} if run.task != "sst2" else {}
        teacher = "bert-rte" if run.model == "student (D)" and run.task == "rte" else None
        machine = "two abaci" if run.seed == 2 else "an abacus"
        return dataclasses.replace(run, hyperparameters=options, teacher=teacher, hardware=machine, **tuned)

    text = compare(str(write(random_scores([*rates], ["cola", "rte", "sst2"], 3), change)), "markdown")
    values = "2e-05 for teacher; 5e-05 for student; 2e-05 for student (D)."
    assert f"- CoLA, RTE: learning_rate (searched: 2e-05, 5e-05) {values}\n" in text
    assert f"- SST-2: learning_rate {values}\n" in text
    assert "- CoLA, RTE, SST-2: batch 16, 17, 18 for all.\n" in text
    assert "warmup" not in text
    assert "shape" not in text  # a mapping is one value
    assert not re.search(r"[:;,] seed \d", text)  # seeds differ by design
    assert "student (D) was fine-tuned with task teachers (second distillation): no teacher (CoLA, SST-2); " in text
    assert "bert-rte (RTE)." in text
    assert "- 18 runs on an abacus, torch 2.13.0.\n- 9 runs on two abaci, torch 2.13.0.\n" in text
    assert "54 min in total: train 45 min, evaluate 9 min." in text


def test_a_search_of_some_models_only_is_told(write: Write) -> None:
    def change(run: RunResult) -> RunResult:
        return dataclasses.replace(run, searched={"learning_rate": [2e-5, 3e-5]} if run.model == "student" else None)

    text = words(compare(str(write(random_scores(["teacher", "student"], ["rte"], 2), change))))
    assert "RTE: learning_rate 2e-05 for teacher (not searched); 2e-05 for student (searched: 2e-05, 3e-05)." in text


def test_runs_that_cannot_be_compared_are_told_first(write: Write) -> None:
    def change(run: RunResult) -> RunResult:
        if run.model == "student" and run.task == "rte":
            run = dataclasses.replace(run, data_fingerprint="half of it")
        return dataclasses.replace(run, model_fingerprint=run.task) if run.model == "teacher" else run

    text = compare(str(write(random_scores(["teacher", "student"], ["cola", "rte"], 2), change)), "markdown")
    first, second = [line for line in text.splitlines() if line.startswith("- ")][:2]
    assert (
        first
        == "- NOT COMPARABLE: the runs of RTE did not read the same data (data of rte: teacher; half of it: student)."
    )
    assert second == (
        "- NOT COMPARABLE: teacher did not begin with the same weights in all its runs (cola: CoLA, seeds 0, 1; "
        "rte: RTE, seeds 0, 1), so that its figures mix several models: give each model a name of its own."
    )


def test_a_metric_in_the_unit_of_the_scores(write: Write) -> None:
    def change(run: RunResult) -> RunResult:
        error = {"teacher": 0.2, "student": 0.31}[run.model] + run.seed / 100
        return dataclasses.replace(run, metrics={"pearson": 90.0, "spearman": 80.0, "mae": error})

    text = compare(str(write(random_scores(["teacher", "student"], ["ratings"], 3), change)), "markdown")
    assert "| student | 90.0/80.0/0.320 |" in text
    assert "Pearson/Spearman/MAE" in text
    assert "- MAE: in the unit of the scores, not in percent; lower is better." in text


def test_runs_outside_the_plan_are_told(write: Write) -> None:
    folder = write(random_scores(["teacher", "student"], ["cola"], 3), seeds=[0, 2], models=[("teacher", "/t")])
    text = words(compare(str(folder)))
    assert (
        "not in the plan: student/cola/seed-0, student/cola/seed-1, student/cola/seed-2, teacher/cola/seed-1." in text
    )
    assert "median of 2 seeds" in text


def test_names_are_shown_as_they_are(write: Write) -> None:
    folder = str(write(random_scores(["[red]t", "a|b*c", "学生"], ["cola"], 2)))
    assert "[red]t" in compare(folder)
    assert "\n| a\\|b\\*c | " in compare(folder, "markdown")
    lines = [line for line in compare(folder).splitlines() if line.startswith(" 学生")]
    assert len(lines) == 2  # of scores and of retention


def test_json_has_every_seed(write: Write) -> None:
    scores = random_scores(["teacher", "student"], ["cola", "rte"], 3)
    scores["student", "rte"].pop(2)
    record = json.loads(compare(str(write(scores)), "json"))
    student, teacher = record["models"]["student"]["tasks"], record["models"]["teacher"]["tasks"]
    assert student["cola"]["by_seed"] == {str(seed): score for seed, score in scores["student", "cola"].items()}
    assert student["cola"]["min"] == min(scores["student", "cola"].values())
    assert student["cola"]["retention"] == pytest.approx(100 * student["cola"]["value"] / teacher["cola"]["value"])
    assert student["rte"]["n"] == 2
    assert student["rte"]["chance_beyond_spread"] == pytest.approx(0.2)
    assert "retention" not in teacher["cola"]
    assert record["missing"] == [{"model": "student", "task": "rte", "seeds": [2]}]
    assert record["macro_tasks"] == {}
    assert len(record["runs"]) == 11
    assert record["runs"][0]["metrics"] == dict.fromkeys(("accuracy", "score"), scores["teacher", "cola"][0])


def test_command_line(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write(random_scores(["teacher", "student"], ["cola", "rte"], 3)))
    expected = compare(folder, "markdown") + "\n"
    file = tmp_path / "new" / "table.md"
    for argv in (
        [folder, "--format", "markdown"],
        ["--format=markdown", folder],
        ["--results", folder, "--format", "markdown"],
    ):
        assert main(["compare", *argv, "--output", str(file)]) == 0
        assert capsys.readouterr().out == expected
        assert file.read_text(encoding="utf-8") == expected
        file.unlink()
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        ([], 2, "--results is missing; see `potstill compare --help`"),
        (["RESULTS", "RESULTS-more"], 1, "There is no folder "),
        (["RESULTS", "--format", "latex"], 2, "invalid choice: 'latex'"),
        (["RESULTS", "--reference", "pupil"], 1, "no model 'pupil' to be the reference: choose from teacher, student."),
        (["RESULTS/teacher"], 1, "is not a folder of results: it has no plan.json"),
        (["RESULTS/nowhere"], 1, "There is no folder"),
        (["RESULTS", "--output", "RESULTS"], 1, "cannot be written, because it is a folder"),
        (["RESULTS", "--output", "RESULTS/plan.json/table"], 1, "cannot be written: "),
    ],
)
def test_what_cannot_be_is_one_sentence(
    write: Write, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, said: str
) -> None:
    folder = write(random_scores(["teacher", "student"], ["cola", "rte"], 2))
    before = sorted(folder.rglob("*"))
    assert main(["compare", *(word.replace("RESULTS", str(folder)) for word in argv)]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("potstill compare: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_damaged_file_is_one_sentence(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(random_scores(["teacher"], ["cola"], 2))
    (folder / "teacher" / "cola" / "seed-1.json").write_text('{"score": 90')
    assert main(["compare", str(folder)]) == 1
    assert re.fullmatch(r"potstill compare: .*seed-1\.json is damaged: it is not JSON .*\n", capsys.readouterr().err)
