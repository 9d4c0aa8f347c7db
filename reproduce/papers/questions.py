"""Question answering with students of a teacher's layers (Chatterjee 2019) and several teachers (Yang et al. 2019).

    python -m reproduce.papers.questions --model MODEL --text 'text/wikipedia-*.jsonl.zst' --squad xquad.en.json

`--text` are articles, of which cloze questions are made (see `cloze_questions`). `--squad` is a file in SQuAD's format,
which is split by article: XQuAD has 1,190 questions, too few to learn from alone. So its teachers are teachers of the
cloze questions that are fine-tuned further, where there are any. Both may also lie in `--task_data`, as
`wikipedia-*.jsonl.zst` (or in `corpus/`) and `xquad.en.json` (or in `xquad/`). What is missing is left out.

For each seed a teacher is fine-tuned from `--model`, and students are made of half of its layers. The three teachers of
a student are those of its own seed and the next two. Students begin with layers of the first, and `from the encoder's
layers` with layers of `--model`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.report.markdown import table
from reproduce.common import Place, new_parser, place_of, read_json, run, write_result
from reproduce.papers import cloze_questions
from reproduce.runs import Job, run_jobs

NAME = "questions"
TEACHERS = 3

CLOZE, SQUAD = "cloze", "squad"
TITLES = {CLOZE: "cloze questions", SQUAD: "XQuAD"}

ROWS = {
    "encoder-teacher": "teacher without the cloze questions",
    "teacher": "teacher",
    "encoder": "student from the encoder's layers, labels alone",
    "alone": "student from the teacher's layers, labels alone",
    "one": "the same with one teacher",
    "average": "the same with three teachers, averaged",
    "separate": "the same with three teachers and a head for each",
    "stages": "one teacher, after the same student learned the cloze questions from its teacher",
}


def new_options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = new_parser(__doc__, runs_per_gpu=6)
    parser.add_argument("--model", help="encoder that the teachers begin with; without one the script is left out")
    parser.add_argument("--task_data", type=Path, help="folder with xquad/ and corpus/, in place of the next options")
    parser.add_argument("--text", nargs="+", help="files of articles, or patterns of names")
    parser.add_argument("--squad", type=Path, help="file of questions in SQuAD's format")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--student_layers", type=int, default=3)
    parser.add_argument(
        "--layers", default="first", help="layers that a student begins with, as for `finetune` (first)"
    )
    parser.add_argument("--train", type=int, default=20_000, help="cloze questions to train on (20000)")
    parser.add_argument("--dev", type=int, default=2000, help="cloze questions to score (2000)")
    parser.add_argument("--epochs", type=float, nargs=2, default=(2, 8), help="of the cloze questions and XQuAD (2 8)")
    parser.add_argument("--learning_rate", type=float, nargs=2, default=(2e-4, 1e-4), help="of both (2e-4 1e-4)")
    parser.add_argument("--temperature", type=float, default=2.0)
    return parser


def main(argv: list[str]) -> None:
    """Make the questions, train all models, and write the scores and the table."""
    options, more = new_options().parse_known_args(argv)
    place = place_of(options, more)
    if not options.model:
        print("question answering is left out: --model names no encoder.")
        return
    if options.seeds < 1:
        raise PotstillError(f"--seeds is {options.seeds}: give 1 or more.")
    text, squad = _text_of(options), _squad_of(options)
    baselines: dict[str, dict[str, float]] = {}
    data: dict[str, dict[str, Any]] = {}
    if text:
        folder = place.work / f"cloze-{options.train}-{options.dev}"
        if not folder.is_dir():
            print(f"making cloze questions from {len(text)} files", flush=True)
            cloze_questions.write(text, folder, options.train, options.dev)
        baselines = cloze_questions.baselines(folder / "dev.json")
        data[CLOZE] = {"train_data": folder / "train.json", "eval_data": folder / "dev.json"}
    else:
        print("the cloze questions are left out: --text names no articles.")
    if squad is not None:
        data[SQUAD] = {"train_data": squad}
    else:
        print("XQuAD is left out: --squad names no file.")
    if not data:
        return
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in data}
    for phase in _phases(place, options, data):
        done = run_jobs([job for _, job in phase], place)
        for ((name, row), _), ended in zip(phase, done, strict=True):
            results = read_json(ended.folder / "results.json")
            found[name].setdefault(row, []).append(results)
            if row == "one":
                found[name].setdefault("alone", []).append(results["without_teacher"])
        written = write_result(place, NAME, _figures(found, baselines))
    print(markdown(_scores(found), baselines))
    print(f"\nThe table is made from {written}.")


def _phases(
    place: Place, options: Namespace, data: dict[str, dict[str, Any]]
) -> list[list[tuple[tuple[str, str], Job]]]:
    """Return the runs in the order of their dependencies; those of a phase may run side by side.

    Each has the name of its data, and its row in the table.
    """
    count = max(options.seeds, TEACHERS)
    seeds, teachers = range(options.seeds), range(count)

    def job(name: str, row: str, seed: int, model: Any, **more: Any) -> tuple[tuple[str, str], Job]:
        settings = {"model": model, "task": "questions", **data[name], **_settings(options, name, seed), **more}
        return (name, row), Job(f"{name}-{row}-{seed}", "finetune", settings, distributed=False, more=place.more)

    def folder(name: str, seed: int) -> Path:
        return place.work / f"{name}-teacher-{seed % count}"

    def students(name: str) -> list[tuple[tuple[str, str], Job]]:
        layers = {"num_hidden_layers": options.student_layers, "layers": options.layers}
        jobs = [job(name, "encoder", seed, options.model, **layers) for seed in seeds]
        for seed in seeds:
            three = [folder(name, seed + number) for number in range(TEACHERS)]
            taught = layers | {"temperature": options.temperature}
            jobs.append(job(name, "one", seed, three[0], teacher=three[0], **taught))
            for heads in ("average", "separate"):
                several = taught | {"teacher": three, "teacher_heads": heads, "without_teacher_too": False}
                jobs.append(job(name, heads, seed, three[0], **several))
        return sorted(jobs, key=lambda one: one[0][1] != "one")  # which takes longest, because it runs twice

    if len(data) == 1:
        (name,) = data
        return [[job(name, "teacher", seed, options.model) for seed in teachers], students(name)]
    first = [job(CLOZE, "teacher", seed, options.model) for seed in teachers]
    first += [job(SQUAD, "encoder-teacher", seed, options.model) for seed in seeds]
    second = [job(SQUAD, "teacher", seed, folder(CLOZE, seed)) for seed in teachers]
    # Yang et al.: the general task first, and then the task at hand, each with its own teacher.
    taught = {"temperature": options.temperature, "without_teacher_too": False}
    third = [
        job(SQUAD, "stages", seed, place.work / f"{CLOZE}-one-{seed}", teacher=folder(SQUAD, seed), **taught)
        for seed in seeds
    ]
    return [first, second, students(CLOZE) + students(SQUAD), third]


def _settings(options: Namespace, name: str, seed: int) -> dict[str, Any]:
    """Return the options that all runs on some data have; the same with and without a teacher."""
    return {
        "num_train_epochs": options.epochs[0 if name == CLOZE else 1],
        "learning_rate": options.learning_rate[0 if name == CLOZE else 1],
        "per_device_train_batch_size": 32 if name == CLOZE else 16,
        "seed": seed,
        "report_to": "none",
    }


def _text_of(options: Namespace) -> list[str]:
    if options.text:
        return cloze_questions.files_of(options.text)
    for folder in (options.task_data, options.task_data and options.task_data / "corpus"):
        found = sorted(glob(str(folder / "wikipedia-*.jsonl*"))) if folder else []
        if found:
            return found
    return []


def _squad_of(options: Namespace) -> Path | None:
    if options.squad is not None:
        if not options.squad.is_file():
            raise PotstillError(f"--squad {options.squad} is no file: name a file in SQuAD's format.")
        return Path(options.squad)
    folder = options.task_data
    candidates = [folder / "xquad.en.json", folder / "xquad" / "xquad.en.json"] if folder else []
    return next((file for file in candidates if file.is_file()), None)


def _scores(found: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return name of the data → row → metric → the value of each seed."""
    return {
        name: {
            row: {metric: [one["metrics"][metric] for one in results] for metric in ("exact", "f1")}
            for row, results in rows.items()
        }
        for name, rows in found.items()
    }


def _figures(found: dict[str, dict[str, list[dict[str, Any]]]], baselines: dict[str, Any]) -> dict[str, Any]:
    rows = {name: next(iter(of.values()))[0]["rows"] for name, of in found.items() if of}
    return {
        "scores": _scores(found),
        "baselines": baselines,
        "rows": rows,
        "table": markdown(_scores(found), baselines).splitlines(),
    }


def markdown(scores: dict[str, dict[str, dict[str, list[float]]]], baselines: dict[str, dict[str, float]]) -> str:
    """Return the table: the median of the seeds, with the lowest and highest, of exact match and F1.

    Below it are the differences to the student that has no teacher, with the same seed and layers.
    """
    header = ["", *(f"{TITLES[name]}, {metric}" for name in scores for metric in ("exact match", "F1"))]
    lines = []
    for trick, found in baselines.items():
        cells = [f"{found[metric]:.1f}" if name == CLOZE else "–" for name in scores for metric in ("exact", "f1")]
        lines.append([f"no model: {trick}", *cells])
    for row, title in ROWS.items():
        cells = [_median(scores[name].get(row, {}).get(metric)) for name in scores for metric in ("exact", "f1")]
        if set(cells) != {"–"}:
            lines.append([title, *cells])
    return "\n".join([table(header, lines, figures=True), "", *_differences(scores)])


def _median(values: Sequence[float] | None) -> str:
    if not values:
        return "–"
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1f}{spread}"


def _differences(scores: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
    """Return a sentence for each set of questions: by how much F1 is higher with teachers, seed by seed."""
    sentences = []
    for name, rows in scores.items():
        alone, parts = rows.get("alone", {}).get("f1", []), []
        for row in ("one", "average", "separate", "stages"):
            values = rows.get(row, {}).get("f1", [])
            gains = [a - b for a, b in zip(values, alone, strict=False)]
            if gains:
                higher = sum(gain > 0 for gain in gains)
                parts.append(f"{statistics.median(gains):+.1f} ({higher} of {len(gains)} seeds higher) for {row}")
        if parts:
            sentences.append(f"- {TITLES[name]}, F1 less that of the labels alone, seed by seed: {', '.join(parts)}.")
    return sentences


if __name__ == "__main__":
    sys.exit(run(main))
