"""What the scripts compute themselves: FLOPs by depth, cost, minutes to a loss, scores, and models cut in parts."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import PotstillError
from potstill.evaluation.results import Plan, RunResult
from potstill.student import load_masked_lm
from reproduce import __main__ as everything
from reproduce import cost, keep, table4
from reproduce.common import FORMAT, new_parser, run
from reproduce.scoring import check_tasks, comparison
from reproduce.time_to_quality import minutes_to
from reproduce.training import _tokens_by_depth


def test_tokens_by_depth() -> None:
    log = [{"step": step, "progress": step / 100} for step in range(5, 101, 5)]
    results = {"cost": {"tokens": 1000, "steps": 100}, "log_history": log}
    recipe = {"grow": "3,6,12", "grow_at": "0.1,0.25"}
    assert _tokens_by_depth(recipe, results, 12) == [(3, 100), (6, 150), (12, 750)]
    assert _tokens_by_depth({"grow": "6,12"}, results, 12) == [(6, 500), (12, 500)]
    assert _tokens_by_depth({"grow": None}, results, 6) == [(6, 1000)]


def test_minutes_to_a_loss() -> None:
    points = [{"minutes": float(m), "loss": loss} for m, loss in ((0, 9.0), (1, 5.0), (2, 3.0), (3, 3.5), (4, 2.0))]
    assert minutes_to(points, 4.0) == 1.5
    assert minutes_to(points, 3.0) == 2.0
    assert minutes_to(points, 9.0) == 0.0
    assert minutes_to(points, 1.0) is None


def test_electricity_is_measured_or_bounded_and_said_to_be() -> None:
    spent = {"gpus": 4, "seconds_by_the_clock": 900.0, "joules": None, "tokens": 7, "gpu_minutes": 50.0}
    bounded = cost._priced("student", "training", spent, watts=700.0, grams_per_kwh=400.0)
    assert bounded["kwh"] == pytest.approx(4 * 0.25 * 0.7)
    assert bounded["grams_co2"] == pytest.approx(280)
    assert not bounded["kwh_is_measured"]
    measured = cost._priced("student", "training", spent | {"joules": 1.8e6}, 700.0, 400.0)
    assert (measured["kwh"], measured["kwh_is_measured"]) == (pytest.approx(0.5), True)
    on_cpu = cost._priced("student", "training", spent | {"gpus": 0}, 700.0, 400.0)
    assert on_cpu["kwh"] is on_cpu["grams_co2"] is None


def test_the_budget_of_the_paper_at_a_measured_speed(tmp_path: Path) -> None:
    spent = {"gpus": 2, "seconds_by_the_clock": 60.0, "joules": None, "tokens_per_second": 2e6}
    for name, figures in (
        ("teacher", {"tokens_per_word": 1.2, "sessions": [{"stages": [{"block_size": 128, "cost": spent}]}]}),
        ("students", {"rows": {"teacher": {}, "student": {"cost": spent}}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"format_version": FORMAT} | figures))
    cost.main(["--results_dir", str(tmp_path), "--work_dir", str(tmp_path), "--gpus", "0"])
    written = json.loads((tmp_path / "cost.json").read_text())
    assert [row["title"] for row in written["rows"]] == ["teacher, session 1, blocks of 128 tokens", "student"]
    assert written["extrapolation"]["gpu_hours"] == pytest.approx(3 * 3.3e9 * 1.2 / 1e6 / 3600)
    assert written["speed"] == {
        "tokens_per_second": 1e6,
        "source": "the distillation of the student",
        "conditions": None,
    }


def test_a_cost_that_is_collected_again_keeps_the_bench_and_when_it_was(tmp_path: Path) -> None:
    bench = {"tokens_per_second": 5e5, "source": cost.BENCH, "conditions": {"date": "2030-01-01"}}
    (tmp_path / "cost.json").write_text(json.dumps({"format_version": FORMAT, "speed": bench}))
    for per_word in (None, 1.2):  # a teacher of prepared blocks does not know it
        teacher = {"format_version": FORMAT, "tokens_per_word": per_word, "sessions": []}
        (tmp_path / "teacher.json").write_text(json.dumps(teacher))
        cost.main(["--results_dir", str(tmp_path), "--work_dir", str(tmp_path), "--gpus", "0"])
        written = json.loads((tmp_path / "cost.json").read_text())
        assert written["speed"] == bench
        assert written["conditions"]["date"] != "2030-01-01"
    assert written["extrapolation"]["gpu_hours"] == pytest.approx(3 * 3.3e9 * 1.2 / 5e5 / 3600)


def test_the_curves_may_have_the_teacher_of_the_ablation_or_their_own(tmp_path: Path) -> None:
    def session(size: int) -> dict:
        return {"stages": [{"block_size": size, "cost": {"gpus": 1}}]}

    scores = {"cost": {"gpus": 1}}
    for name, figures in (
        ("table4", {"rows": {}, "tasks": scores, "sessions": [session(128)]}),
        ("time_to_quality", {"sessions": [session(128), session(64)]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"format_version": FORMAT} | figures))
    assert [title for title, part, _ in cost.collected(tmp_path) if part == "training"] == [
        "teacher of the ablation, session 1, blocks of 128 tokens",
        "teacher of quality against time, session 2, blocks of 64 tokens",
    ]


def test_the_ablation_may_have_a_teacher_of_its_own(tmp_path: Path) -> None:
    def session(size: int) -> dict:
        return {"stages": [{"block_size": size, "cost": spent}]}

    spent = {"gpus": 2, "seconds_by_the_clock": 60.0, "joules": None}
    table = {"rows": {"full": {"cost": spent}}, "tasks": {"cost": spent}}
    for own, told in (
        ([session(128)], []),
        ([session(128), session(512)], ["teacher of the ablation, session 2, blocks of 512 tokens"]),
        ([session(32)], ["teacher of the ablation, session 1, blocks of 32 tokens"]),
    ):
        for name, figures in (("teacher", {"sessions": [session(128)]}), ("table4", table | {"sessions": own})):
            (tmp_path / f"{name}.json").write_text(json.dumps({"format_version": FORMAT} | figures))
        assert [title for title, _, _ in cost.collected(tmp_path)] == [
            "teacher, session 1, blocks of 128 tokens",
            *told,
            "ablation, full",
            "fine-tuning on GLUE for the ablation, all models",
        ]


def test_scores_are_medians_with_what_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "glue"
    Plan(
        [("teacher", "/models/t"), ("student", "/models/s")],
        ["cola", "rte", "wnli", "mnli"],
        {"mnli": "none"},
        [1, 2, 3],
    ).save(folder)
    for model, base in (("teacher", 60.0), ("student", 50.0)):
        for task in ("cola", "rte", "wnli"):
            for seed in (1, 2, 3):
                score = base + seed * (10 if task == "wnli" else 1)
                RunResult(
                    model=model,
                    model_path=f"/models/{model}",
                    task=task,
                    title=task,
                    suite="glue",
                    seed=seed,
                    score=score,
                    metrics={"accuracy": score},
                    teacher=None,
                    hyperparameters={"learning_rate": 5e-5, "num_train_epochs": 3.0},
                    versions={},
                    hardware="",
                    seconds={},
                    rows={"train": 9},
                    data_fingerprint=task,
                    model_fingerprint=model,
                    date="2030-01-01",
                ).save(folder)
    found = comparison(folder)
    student = found["models"]["student"]
    assert student["tasks"]["cola"]["value"] == 52
    assert student["tasks"]["cola"]["retention"] == pytest.approx(100 * 52 / 62)
    assert (student["tasks"]["cola"]["min"], student["tasks"]["cola"]["max"]) == (51, 53)
    assert student["tasks"]["rte"]["metrics"] == {"accuracy": 52}
    assert student["macros"]["GLUE macro"]["value"] == pytest.approx((52 + 52 + 70) / 3)
    assert student["macros"]["without WNLI"]["value"] == 52
    assert student["macros"]["without WNLI"]["beyond_spread"] is True
    assert found["absent"] == ["mnli"]
    assert "/models" not in json.dumps(found)


def test_every_row_of_the_ablation_changes_what_it_says() -> None:
    changed = {name: set(changes) for name, changes in table4.ROWS.items()}
    assert changed["full"] == set()
    assert changed["no-ce"] == {"alpha_ce"}
    assert changed["no-cos"] == {"alpha_cos"}
    assert changed["no-mlm"] == {"alpha_mlm"}
    assert changed["random"] == {"initialise"}


def test_a_model_is_cut_in_parts_and_put_together(teacher_folder: Path, tmp_path: Path) -> None:
    parts, joined = tmp_path / "parts", tmp_path / "joined"
    keep.main(["split", str(teacher_folder), str(parts), "--megabytes", "0.02"])
    assert all(file.stat().st_size <= 20_000 for file in parts.glob("model.safetensors.*"))
    keep.main(["join", str(parts), str(joined)])
    before, after = (load_file(folder / "model.safetensors") for folder in (teacher_folder, joined))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value.half()), name
    assert load_masked_lm(str(joined)).dtype == torch.float32
    (parts / "model.safetensors.001").unlink()
    with pytest.raises(PotstillError, match="are incomplete or damaged"):
        keep.main(["join", str(parts), str(tmp_path / "again")])
    assert not (tmp_path / "again").exists()


def everything_of(words: list[str], tmp_path: Path) -> dict[str, list[str]]:
    parser = new_parser("x")
    for name in ("teacher", "corpus", "task_data", "imdb", "squad"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("text", "other_text", "prepare_options"):
        parser.add_argument(f"--{name}", nargs="+")
    parser.add_argument("--layers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float)
    options: argparse.Namespace = parser.parse_args([*words, "--work_dir", str(tmp_path)])
    return dict(everything.commands(options))


def test_one_command_runs_all_in_order(tmp_path: Path) -> None:
    found = everything_of(["--text", "a", "b", "--task_data", "glue", "--minutes", "2"], tmp_path)
    names = ["teacher", "students", "table1", "table2", "table3", "table4", "time_to_quality", "cost", "render"]
    assert list(found) == names
    assert found["teacher"][-4:] == ["2.0", "--text", "a", "b"]
    assert "--task_data" in found["table1"]
    assert "--models" not in found["table1"]


def test_a_teacher_of_ones_own_takes_the_place_of_text(tmp_path: Path) -> None:
    found = everything_of(["--teacher", "bert", "--corpus", "blocks", "--layers", "alternate"], tmp_path)
    assert "teacher" not in found
    for script in ("students", "table4", "time_to_quality"):
        assert " ".join(found[script]).count("--teacher bert --corpus blocks --layers alternate") == 1
    assert "teacher=bert" in found["table1"]
    assert f"initialised={tmp_path / 'initialised'}" in found["table1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give either --text to make a teacher from, or --teacher and --corpus."),
        (["--teacher", "bert"], "--teacher and --corpus belong together: give both"),
        (["--text", "a", "--seeds", "1"], "--seeds is 1: medians and their spread need at least 2, better 5."),
        (["--text", "a", "--minutes", "0"], "--minutes is 0: it must be above 0."),
        (["--text", "a", "--gpus", "99"], "--gpus is 99, but"),
        (["--text", "a", "--task_data", "no/glue"], "--task_data no/glue is not a folder"),
        (["--text", "a", "--task_data", "docs"], "--task_data docs has no data of any GLUE task"),
        (["--text", "a", "--imdb", "docs"], "docs has no data of IMDb"),
        (["--text", "a", "--squad", "no/squad.json"], "There is no file or folder no/squad.json"),
    ],
)
def test_what_is_wrong_is_told_before_the_hours(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(everything, "run_script", lambda *_: pytest.fail("a script ran"))
    assert run(everything.main, words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"reproduce: {told}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--seeds", "1"], "--seeds is 1"), (["--task_data", "no/glue"], "--task_data no/glue is not a folder")],
)
def test_an_ablation_that_cannot_be_scored_is_not_trained(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(table4, "run_jobs", lambda *_: pytest.fail("a training ran"))
    assert run(table4.main, [*words, "--gpus", "0"]) == 1
    assert capsys.readouterr().err.startswith(f"reproduce: {told}")


def test_the_data_of_one_task_of_glue_will_do(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").touch()
    check_tasks(2, tmp_path)
