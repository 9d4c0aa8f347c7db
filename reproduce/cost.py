"""The cost of every row in GPU-minutes, tokens, FLOPs, electricity and CO₂, and that of the paper's own budget.

    python -m reproduce.cost --bench
    python -m reproduce.cost --grams_per_kwh 56      # for cleaner electricity

It reads the results of the other scripts. If no sensor was read, 700 watts per GPU give an upper bound of the
electricity: an H200 takes at most that. The machine around the GPUs and its cooling are not included. The default of
`--grams_per_kwh` is the world's mean of 2022, 436 g (Ember, Global Electricity Review 2023).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from reproduce.common import Place, conditions, new_parser, place_of, read_json, read_result, run, write_result
from reproduce.power import visible_gpus
from reproduce.runs import Job, run_job
from reproduce.training import lengths

WATTS = 700.0
GRAMS_PER_KWH = 436.0
BENCH = "`potstill bench train`, blocks of 512 tokens"
PAPER_WORDS, PAPER_EPOCHS = 3.3e9, 3
"""BERT's corpus (Devlin et al. 2019: 800 M words of books, 2,500 M of Wikipedia), and DistilBERT's epochs."""


def main(argv: list[str]) -> None:
    """Collect the costs and write them."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--grams_per_kwh", type=float, default=GRAMS_PER_KWH, help="grams of CO₂ per kWh of electricity"
    )
    parser.add_argument("--watts", type=float, default=WATTS, help="upper bound of a GPU's power if no sensor was read")
    parser.add_argument("--bench", action="store_true", help="measure tokens/s at 512 tokens with the teacher's shape")
    parser.add_argument("--teacher", type=Path, help="folder of the teacher; default: that of reproduce.teacher")
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    rows = [
        _priced(title, part, cost, options.watts, options.grams_per_kwh)
        for title, part, cost in collected(place.results)
    ]
    speed = _speed(place, options)
    figures = {
        "grams_per_kwh": options.grams_per_kwh,
        "watts": options.watts,
        "rows": rows,
        "speed": speed,
        "extrapolation": _extrapolated(place, speed, options.watts, options.grams_per_kwh),
    }
    write_result(place, "cost", figures)


def collected(results: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (title, part, cost) of all runs."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    listed: list[dict[str, Any]] = []
    for script, title in (
        ("teacher", "teacher"),
        ("table4", "teacher of the ablation"),
        ("time_to_quality", "teacher of quality against time"),
    ):
        sessions = (read_result(results, script) or {}).get("sessions", [])
        found += _sessions(title, sessions, listed)
        listed += sessions
    for script, prefix in (("students", ""), ("table4", "ablation, ")):
        trained = read_result(results, script) or {"rows": {}}
        for name, row in trained["rows"].items():
            if "cost" in row:
                found.append((f"{prefix}{name}", "training", row["cost"]))
    for script, part, title in (
        ("table1", None, "GLUE"),
        ("table2", "imdb", "IMDb"),
        ("table2", "squad", "questions"),
        ("table4", "tasks", "GLUE for the ablation"),
    ):
        scores = read_result(results, script)
        if scores is not None:
            cost = (scores if part is None else scores[part])["cost"]
            found.append((f"fine-tuning on {title}, all models", "fine-tuning", cost))
    return found


def _sessions(
    title: str, sessions: list[dict[str, Any]], listed: list[dict[str, Any]]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the stages of a teacher's training, without the sessions that are in `listed` already."""
    return [
        (f"{title}, session {number}, {lengths(stage)}", "training", stage["cost"])
        for number, session in enumerate(sessions, 1)
        if session not in listed
        for stage in session["stages"]
    ]


def _priced(title: str, part: str, cost: dict[str, Any], watts: float, grams_per_kwh: float) -> dict[str, Any]:
    """Return a row of the table: the measured cost, and the electricity from sensors or from its upper bound."""
    gpu_seconds = cost["seconds_by_the_clock"] * cost["gpus"]
    joules = cost["joules"] if cost["joules"] is not None else gpu_seconds * watts
    kwh = joules / 3.6e6 if cost["gpus"] else None
    return {
        "title": title,
        "part": part,
        "gpus": cost["gpus"],
        "gpu_minutes": cost.get("gpu_minutes"),
        "gpu_minutes_by_the_clock": gpu_seconds / 60,
        "tokens": cost.get("tokens"),
        "flops": cost.get("flops"),
        "kwh": kwh,
        "kwh_is_measured": cost["joules"] is not None,
        "grams_co2": None if kwh is None else kwh * grams_per_kwh,
    }


def _speed(place: Place, options: Any) -> dict[str, Any] | None:
    """Return tokens/s of a distillation on one GPU, the source of the figure, and the conditions of its measurement.

    Without `--bench`, the result of an earlier bench is used. Return None if nothing was measured.
    """
    if options.bench:
        bench = {"teacher": options.teacher or place.teacher, "block_size": 512, "per_device_train_batch_size": 128}
        folder = place.work / "bench-512"
        folder.mkdir(parents=True, exist_ok=True)
        bench |= {"bf16": bool(place.gpus), "torch_compile": bool(place.gpus), "json": folder / "bench.json"}
        job = Job("bench-512", "bench train", bench, distributed=False, more=place.more)
        run_job(job, place, visible_gpus(min(place.gpus, 1)))
        measured = read_json(folder / "bench.json")["speed"]["tokens_per_second"]
        return {"tokens_per_second": measured, "source": BENCH, "conditions": conditions(place, "cost")}
    before = (read_result(place.results, "cost") or {}).get("speed")
    if before is not None and before["source"] == BENCH:
        return before
    students = read_result(place.results, "students") or {"rows": {}}
    cost = students["rows"].get("student", {}).get("cost")
    if not cost or not cost["tokens_per_second"]:
        return None
    return {
        "tokens_per_second": cost["tokens_per_second"] / max(cost["gpus"], 1),
        "source": "the distillation of the student",
        "conditions": students.get("conditions"),
    }


def _extrapolated(
    place: Place, speed: dict[str, Any] | None, watts: float, grams_per_kwh: float
) -> dict[str, Any] | None:
    """Return the cost of three epochs over BERT's corpus on one GPU at a measured speed."""
    per_word = (read_result(place.results, "teacher") or {}).get("tokens_per_word")
    if speed is None or per_word is None:
        return None
    tokens = PAPER_EPOCHS * PAPER_WORDS * per_word
    hours = tokens / speed["tokens_per_second"] / 3600
    return {
        "tokens_per_word": per_word,
        "tokens": tokens,
        "gpu_hours": hours,
        "kwh_at_most": hours * watts / 1000,
        "grams_co2_at_most": hours * watts / 1000 * grams_per_kwh,
    }


if __name__ == "__main__":
    sys.exit(run(main))
