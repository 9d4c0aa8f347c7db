"""The page is what the results give: every figure of it from a file, and no figure where there is none."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hostile import BROKEN, NAMES, rendered

from potstill.errors import PotstillError
from potstill.report.markdown import visible
from reproduce import render
from reproduce.common import FORMAT, HERE, run
from reproduce.render import BEGIN, END, NOT_YET, section, with_section

CONDITIONS = {
    "command": "python -m reproduce.x --seeds 3",
    "date": "2030-01-02",
    "commit": "abc1234",
    "hardware": "NVIDIA H999",
    "gpus": 4,
    "versions": {"potstill": "0", "torch": "9.9", "transformers": "8.8"},
}
COST = {
    "steps": 100,
    "tokens": 3_200_000,
    "gpu_minutes": 12.34,
    "tokens_per_second": 987_654.0,
    "flops": 1.5e15,
    "gpus": 4,
    "seconds_by_the_clock": 200.0,
    "joules": None,
}
TEACHER = {"name": "teacher", "model_type": "bert", "layers": 12, "hidden_size": 768, "vocab_size": 30522}
CORPUS = {
    "block_size": 128,
    "sources": ["text"],
    "documents": {"train": 900, "validation": 9},
    "tokens": {"train": 5_000_000, "validation": 70_000},
}


def figures(value: float, low: float, high: float, retention: float | None = None, beyond: bool = False) -> dict:
    kept: dict = {} if retention is None else {"retention": retention, "beyond_spread": beyond}
    kept |= {} if retention is None else {"chance_beyond_spread": 0.1}
    return {"value": value, "min": low, "max": high, "n": 3, "learning_rate": [5e-5], "metrics": {"exact": 41.5}} | kept


def scores(models: dict[str, tuple], tasks: tuple[str, ...] = ("cola", "rte")) -> dict[str, Any]:
    """Models with one figure each: (value, low, high, retention, beyond the spread)."""
    return {
        "reference": next(iter(models)),
        "titles": {"cola": "CoLA", "rte": "RTE", "mnli": "MNLI", "imdb": "IMDb", "squad": "SQuAD 1.1"},
        "models": {
            name: {
                "tasks": {task: figures(*of) for task in tasks},
                "macros": {"GLUE macro": figures(*of)} if len(tasks) > 1 else {},
            }
            for name, of in models.items()
        },
        "macro_tasks": {"GLUE macro": list(tasks)} if len(tasks) > 1 else {},
        "seeds": [42, 43, 44],
        "absent": [task for task in ("cola", "rte", "mnli", "imdb", "squad") if task not in tasks],
        "missing": [],
        "searched": [],
        "epochs": dict.fromkeys(tasks, 3.0),
        "rows": {},
        "cost": COST,
    }


GLUE = {"teacher": (60.61, 60.11, 61.11), "student": (59.59, 58.88, 60.22, 98.32, True)}
ROW = {"held_out": {"own": {"loss": 2.121, "accuracy": 0.5711, "kl": 0.1234, "agreement": 0.8181}}}
FILES: dict[str, dict[str, Any]] = {
    "teacher": {
        "teacher": TEACHER,
        "parameters": 109_514_298,
        "corpus": CORPUS,
        "other": None,
        "tokens_per_word": 1.25,
        "sessions": [
            {
                "continued": False,
                "stages": [{"block_size": 128, "held_out": {"loss": 1.9, "accuracy": 0.6}, "cost": COST}],
            }
        ],
        "held_out": {"128": {"loss": 1.9191, "accuracy": 0.6161}},
    },
    "students": {
        "teacher": TEACHER,
        "recipe": {"layers": "0,1,2,3,4,11", "masking": "uniform", "soft_targets": "all"},
        "minutes": 10,
        "rows": {
            "teacher": {"held_out": {"own": {"loss": 1.9191, "accuracy": 0.6161}}},
            "student": ROW | {"cost": COST},
            "initialised": ROW,
        },
    },
    "table1": scores(GLUE),
    "table2": {
        "imdb": scores(GLUE, ("imdb",)),
        "squad": scores(GLUE | {"student (D)": (62.22, 61.0, 63.0, 103.0)}, ("squad",)),
    },
    "table3": {
        "pairs": 1500,
        "threads": 2,
        "hardware": "a CPU",
        "disturbance": "nothing else ran",
        "rows": {
            name: {
                "encoder_parameters": 66_362_880,
                "parameters": 1,
                "bytes": size,
                "flops": 5.678e9,
                "forms": {
                    "PyTorch, eager": {
                        "milliseconds": ms,
                        "quartiles": [ms - 1, ms + 1],
                        "seconds_of_a_pass": ms,
                        "ratio": ratio,
                    }
                },
            }
            for name, size, ms, ratio in (
                ("teacher", 438_000_000, 80.0, None),
                ("student", 265_000_000, 40.0, [2.0, 1.9, 2.1]),
                ("ELMo-shaped", None, 160.0, [0.5, 0.4, 0.6]),
            )
        },
    },
    "table4": {
        "teacher": TEACHER,
        "sessions": [{"continued": False, "stages": [{"block_size": 128, "cost": COST}]}] * 2,
        "minutes": 5.0,
        "rows": {
            name: {
                "held_out": ROW["held_out"]["own"] | {"teacher_loss": 1.771, "teacher_accuracy": 0.6262},
                "held_out_at_start": {"loss": 3.456},
                "cost": COST,
            }
            for name in ("full", "no-ce")
        },
        "tasks": scores(
            {"full": (60.0, 59.0, 61.0), "no-ce": (57.5, 57.0, 58.0, 95.8, True), "teacher": (63.25, 63.0, 63.5)}
        )
        | {"max_train_samples": 20000},
    },
    "cost": {
        "grams_per_kwh": 436.0,
        "watts": 700.0,
        "rows": [
            {
                "title": title,
                "gpu_minutes": 12.3,
                "gpu_minutes_by_the_clock": 13.3,
                "tokens": 3_200_000,
                "flops": 1.5e15,
                "kwh": 0.1551,
                "kwh_is_measured": measured,
                "grams_co2": 67.6,
            }
            for title, measured in (("student", True), ("alone", False), ("ablation, no-ce", True))
        ],
        "speed": {
            "tokens_per_second": 654_321.0,
            "source": "a bench",
            "conditions": CONDITIONS | {"hardware": "NVIDIA H888"},
        },
        "extrapolation": {
            "tokens_per_word": 1.25,
            "tokens": 12.375e9,
            "gpu_hours": 5.25,
            "kwh_at_most": 3.68,
            "grams_co2_at_most": 1602.0,
        },
    },
    "time_to_quality": {
        "teacher": TEACHER,
        "sessions": [{"continued": False, "stages": [{"block_size": 128, "cost": COST}]}],
        "curves": {name: {"points": [{"minutes": 8.0, "step": 1234, "loss": 2.345}]} for name in ("plain", "potstill")},
        "level": 2.345,
        "minutes_to_level": {"plain": 8.0, "potstill": 3.2},
    },
    "leader_board": {
        "boards": [
            {
                "conditions": CONDITIONS,
                "teacher": TEACHER,
                "sessions": [{"continued": False, "stages": [{"block_size": 128, "cost": COST}]}],
                "teacher_held_out": {"own": {"loss": 1.717, "accuracy": 0.6565}},
                "rows": {
                    name: {
                        "minutes": minutes,
                        "by_the_clock": minutes + 1,
                        "recipe": {"soft_targets": "sampled", "learning_rate": "1e-3"},
                        "steps": 1000,
                        "tokens": 4_300_000,
                        "tokens_per_second": 812_345.0,
                        "held_out": [
                            {"own": {"loss": loss + more, "kl": 0.111, "accuracy": 0.5}} for more in (0, 0.02)
                        ],
                    }
                    for name, minutes, loss in (("reference", 9, 2.111), ("fast, 4.5 min", 4.5, 2.121))
                },
                "reached": {"reference": True, "fast, 4.5 min": True},
                "tasks": scores(dict.fromkeys(("teacher", "reference", "fast, 4.5 min"), (60.61, 60.11, 61.11))),
            }
        ]
    },
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, found in FILES.items():
        record = {"format_version": FORMAT, "conditions": CONDITIONS} | found
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_page_is_what_the_results_of_the_repository_give() -> None:
    assert run(render.main, ["--check"]) == 0


def test_nothing_is_said_of_what_was_not_measured(tmp_path: Path) -> None:
    written = section(tmp_path)
    assert written.count(NOT_YET) == len(FILES)
    assert "|" not in written
    assert "not the published BERT" in written


def part(written: str, title: str) -> str:
    return re.split(r"^### ", written, flags=re.MULTILINE)[[*_titles(written)].index(title) + 1]


def _titles(written: str) -> list[str]:
    return re.findall(r"^### (.*)$", written, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "figures"),
    [
        ("The teacher", ["109,514,298", "1.919", "61.6 %", "12.3", "3.2 M", "987,654"]),
        ("The student, on held-out text", ["2.121", "57.1 %", "92.7 %", "0.123", "81.8 %"]),
        ("Table 1: GLUE", ["60.6 (60.1–61.1)", "59.6 (58.9–60.2)", r"\*98.3", "No data for MNLI"]),
        ("Table 2: IMDb and questions", ["student, second distillation", "62.2 (61.0–63.0)", "41.5"]),
        (
            "Table 3: size and speed",
            ["66.4 M", "265,000,000", "40.0 (39.0–41.0)", "5.68", "2.00 × (1.90–2.10)", "| – |"],
        ),
        (
            "Table 4: ablation",
            [
                *("57.5 (57.0–58.0)", r"\*-2.50", "-2.96", "5 GPU-minutes", "24.7 GPU-minutes of pre-training"),
                *(
                    "3.456",
                    "2.121",
                    "| teacher | – | – |",
                    "1.771 | 62.6 %",
                    "0.123 | 81.8 %",
                    "| CoLA |",
                    *(
                        "20,000 training rows",
                        "teacher | 63.2 (63.0–63.5) | +3.25 | –",
                        "alone this happens in 10.0 % of",
                    ),
                ),
            ],
        ),
        (
            "Cost",
            [
                "654,321 tokens/s (a bench, NVIDIA H888, 2030-01-02",
                "ablation, without L_ce",
                "| 0.155 |",
                "≤ 0.155",
                "≤ 68",
                "5.2 hours",
                "12.4 billion",
                "436 g/kWh",
            ],
        ),
        (
            "Leader board of trainings",
            [
                "| the teacher | – | – | – | – | 1.717 | – | 65.6 % | – | 60.6 (60.1–61.1) |",
                "| reference | 9 | 10.0 | 4.3 M | 812,345 | 2.121 (2.111–2.131) | 0.111 (0.111–0.111) | 50.0 % | – |",
                "| fast, 4.5 min | 4.5 | 5.5 |",
                "50.0 % | yes |",
                "12.3 GPU-minutes of pre-training",
                "`soft_targets: sampled`, `learning_rate: 1e-3`",
            ],
        ),
        ("Quality against time", ["2.345", "3.20", "2.50 ×", "time-to-quality.svg", "after 12.3 GPU-minutes of pre"]),
    ],
)
def test_every_table_has_its_figures_and_their_conditions(results: Path, title: str, figures: list[str]) -> None:
    written = part(section(results), title)
    assert [figure for figure in figures if figure not in written] == []
    assert "python -m reproduce.x --seeds 3" in written
    assert "4 × NVIDIA H999, torch 9.9, transformers 8.8, 2030-01-02, commit abc1234." in written
    tables = [line.count("|") for line in written.splitlines() if line.startswith("|")]
    for block in re.findall(r"(?:^\|.*\n?)+", written, re.MULTILINE):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert tables


def test_a_macro_score_whose_median_was_not_kept_is_a_range(results: Path) -> None:
    for name, place in (("table1", ()), ("table4", ("tasks",))):
        record = whole = json.loads((results / f"{name}.json").read_text())
        for key in place:
            record = record[key]
        last = list(record["models"].values())[-1]["macros"]["GLUE macro"]
        last |= {"value": None, "retention": None}
        (results / f"{name}.json").write_text(json.dumps(whole))
    written = section(results)
    assert "| student, distilled | 58.9–60.2 | 59.6 (58.9–60.2) |" in part(written, "Table 1: GLUE")
    assert "| student, distilled | \\*– | \\*98.3 |" in part(written, "Table 1: GLUE")
    assert "only the lowest and the highest macro score were kept" in part(written, "Table 1: GLUE")
    assert "| 63.0–63.5 | – | – |" in part(written, "Table 4: ablation")


@pytest.mark.parametrize(("name", "low"), [("table1", 60.62), ("table4", 58.0)])
def test_a_figure_outside_its_range_is_refused(results: Path, name: str, low: float) -> None:
    record = json.loads((results / f"{name}.json").read_text())
    next(iter(record.get("tasks", record)["models"].values()))["macros"]["GLUE macro"] |= {"min": low, "max": low + 1}
    (results / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(PotstillError, match=r"lies outside its range .*: run the script of its table again\.$"):
        section(results)


def test_no_figure_of_the_pages_lies_outside_its_range() -> None:
    root, ranges = HERE.parent, 0
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        found = re.findall(r"([\d.,]*\d)(?: ×| %)? \(([\d.,]*\d)–([\d.,]*\d)\)", page.read_text(encoding="utf-8"))
        for words in found:
            value, low, high = (float(word.replace(",", "")) for word in words)
            assert low <= value <= high, (page.name, words)
        ranges += len(found)
    assert ranges > 100


@pytest.mark.parametrize("name", [*NAMES, *BROKEN])
def test_names_are_shown_as_they_are(results: Path, name: str) -> None:
    for script in ("table1", "table3"):
        record = json.loads((results / f"{script}.json").read_text())
        of = record["models"] if script == "table1" else record["rows"]
        of[name] = of.pop("student")
        record["conditions"] |= {"hardware": name, "versions": {"torch": name}}
        (results / f"{script}.json").write_text(json.dumps(record | {"hardware": name}))
    record = json.loads((results / "table1.json").read_text())
    record["titles"]["cola"] = name
    (results / "table1.json").write_text(json.dumps(record))
    scores, kept = rendered(part(section(results), "Table 1: GLUE")).tables
    assert scores[0] == ["", "GLUE macro", visible(name), "RTE"]
    assert scores[2] == [visible(name), *["59.6 (58.9–60.2)"] * 3]
    assert kept[1] == [visible(name), *["*98.3"] * 3]
    page = rendered(part(section(results), "Table 3: size and speed"))
    assert visible(name) in [row[0] for row in page.tables[0]]
    assert f"2 threads on {visible(name)} (nothing" in page.text
    assert f"4 × {visible(name)}, torch {visible(name)}, 2030-01-02" in page.text
    assert (page.html, page.links) == ([], [])


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 10**5, '{"format_version": NaN}', '{"format_version": 1}'])
def test_damaged_results_are_told(results: Path, content: str) -> None:
    (results / "students.json").write_text(content)
    with pytest.raises(PotstillError, match=r"students\.json is damaged: it|does not have the form"):
        section(results)


def test_a_teacher_of_ones_own_is_named(results: Path) -> None:
    record = json.loads((results / "students.json").read_text())
    record["teacher"] = TEACHER | {"name": "bert-base-uncased"}
    (results / "students.json").write_text(json.dumps(record))
    assert "**The teacher is `bert-base-uncased`**" in section(results)


def test_only_the_section_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_section(page, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    for broken in ("nothing", f"{END}\n{BEGIN}", page + page, f"{BEGIN}\n"):
        with pytest.raises(PotstillError, match="must have the line"):
            with_section(broken, "new")


def test_a_page_that_is_behind_is_told(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    options = ["--page", str(page), "--results_dir", str(results)]
    assert run(render.main, [*options, "--check"]) == 1
    assert "is not up to date with the results" in capsys.readouterr().err
    assert run(render.main, options) == 0
    assert run(render.main, [*options, "--check"]) == 0


def test_results_of_another_format_are_refused(results: Path) -> None:
    (results / "cost.json").write_text('{"format_version": 99}')
    with pytest.raises(PotstillError, match="does not have format"):
        section(results)


def test_what_is_committed_names_no_folder_of_a_machine() -> None:
    for file in (HERE / "results").glob("*.json"):
        assert not re.search(r'"/(home|root|work|tmp|Users)/', file.read_text()), file
