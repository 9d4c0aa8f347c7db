"""Fine-tune an encoder and its student of 3 layers on four tasks of a user's own files, and print tables.

    python benchmarks/own_tasks.py --model all-MiniLM-L6-v2/ --data data/own --sts data/glue/STS-B --output_dir out/

`--data` is a folder with `banking77/{train,test}.csv`, `goemotions/{train,test}.tsv` with `labels.txt`, and
`wnut17/{train,test}.conll`; `--sts` one with GLUE's `train.tsv` and `dev.tsv`. Each run is `potstill finetune` with its
own folder. A run whose folder is complete is not repeated. All rows of a table read equally many examples: runs on half
of the labels have twice as many epochs. To try it on a CPU:

    python benchmarks/own_tasks.py … --seeds 1 --parallel 1 --learning_rates 3e-4 --divide_epochs 20 --max_length 32 \
        --tasks banking77
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import yaml

CHOICE_SEED = "1"
"""Seed of the runs that choose the learning rate."""


@dataclass(frozen=True)
class Task:
    """One task: its declaration, and how long it is trained.

    Attributes:
        declaration: the contents of its `task.yaml`; the files are those of `write_files`.
        epochs: passes over all training rows, of the students.
        teacher_epochs: the same of the teachers.
        batch: rows of a step.
        lengths: options for the length of the input.
        few: labels of each class in a small training file; 0 for none.
    """

    declaration: dict[str, Any]
    epochs: float
    teacher_epochs: float
    batch: int = 32
    lengths: dict[str, Any] = field(default_factory=lambda: {"max_length": 64})
    few: int = 0


TASKS = {
    "banking77": Task({"kind": "classification", "label_column": "category"}, 10, 10, few=10),
    "goemotions": Task({"kind": "multilabel", "columns": "text,label,id"}, 8, 12, batch=64),
    "wnut17": Task({"kind": "tagging"}, 30, 10, batch=64),
    "scored-pairs": Task(
        {"kind": "regression", "text_column": "sentence1", "pair_column": "sentence2"}, 30, 10, batch=64
    ),
}


def main() -> None:
    """Run everything and write `tables.md` and `results.json`."""
    options = parsed()
    runner = Runner(options)
    for name in options.tasks:
        write_files(name, options)
    chosen = choose_rates(options, runner)
    runner.run([("teacher", name, seed) for name in options.tasks for seed in options.seeds], chosen)
    rows = {
        n: [row for row in options.rows if row != "teacher" and ("few" not in row or TASKS[n].few)]
        for n in options.tasks
    }
    # The teacher of few labels must be there before its student.
    runner.run([(r, n, s) for n in options.tasks for r in rows[n] if r == "teacher-few" for s in options.seeds], chosen)
    runner.run([(r, n, s) for n in options.tasks for r in rows[n] if r != "teacher-few" for s in options.seeds], chosen)
    report(options, {name: ["teacher", *rows[name]] for name in options.tasks}, chosen)


ROWS = {
    "teacher": "the teacher: all layers, all labels",
    "plain": "3 layers, all labels",
    "taught": "3 layers, all labels and the teacher",
    "plain-start": "3 layers of the teacher, all labels",
    "taught-start": "3 layers of the teacher, all labels and the teacher",
    "plain-half": "3 layers, half of the labels",
    "taught-half": "3 layers, half of the labels and the teacher",
    "texts-half": "the same, and the other half as texts without labels",
    "teacher-few": "all layers, few labels",
    "plain-few": "3 layers, few labels",
    "taught-few": "3 layers, few labels and the teacher of all labels",
    "texts-few": "the same, and the other texts without labels",
    "own-texts-few": "the same with the teacher of few labels",
}


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or hub name of an encoder of 6 layers")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sts", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--learning_rates", nargs="+", default=["1e-4", "3e-4"], help="the best with seed 1 is used")
    parser.add_argument("--teacher_rate", help="learning rate of the teachers, which then need not be chosen")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows of the tables")
    parser.add_argument("--layers", nargs="+", default=["alternate", "first"], help="of the student; likewise")
    parser.add_argument("--gpus", nargs="*", default=["0"], help="numbers of the GPUs to use; none for the CPU")
    parser.add_argument("--parallel", type=int, default=8, help="runs at a time on each GPU")
    parser.add_argument("--divide_epochs", type=float, default=1, help="train less, to try the script")
    parser.add_argument("--max_length", type=int, help="longest input in tokens, to try the script")
    parser.add_argument("--max_eval_samples", type=int, help="rows to score, to try the script")
    return parser.parse_args()


def write_files(name: str, options: argparse.Namespace) -> None:
    """Write the files of a task: all training rows, a half, the other half, few rows and the rest; and `task.yaml`s."""
    folder = options.output_dir / name / "data"
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    header, rows, test, suffix, separator = read(name, options)
    shuffled = random.Random(0).sample(rows, len(rows))
    middle = len(rows) // 2
    parts = {"train": rows, "half": shuffled[:middle], "other": shuffled[middle:], "test": test}
    if few := TASKS[name].few:
        seen: dict[str, int] = {}
        parts["few"], parts["rest"] = [], []
        for row in shuffled:
            label = next(csv.reader([row]))[1]
            seen[label] = seen.get(label, 0) + 1
            parts["few" if seen[label] <= few else "rest"].append(row)
    for part, chosen in parts.items():
        (folder / f"{part}{suffix}").write_text(header + separator.join(chosen) + separator, encoding="utf-8")
    labels = {}
    if name == "goemotions":
        (folder / "labels.txt").write_bytes((options.data / name / "labels.txt").read_bytes())
        labels = {"label_names": "labels.txt"}
    for part in ("train", "half", "few"):
        if part in parts:
            files = {"name": name, "train": f"{part}{suffix}", "eval": f"test{suffix}"}
            (folder / f"{part}.yaml").write_text(yaml.safe_dump(TASKS[name].declaration | files | labels))
    (folder / "done").touch()


def read(name: str, options: argparse.Namespace) -> tuple[str, list[str], list[str], str, str]:
    """Return a task's header, its training rows and test rows as text, the ending of its files, and what ends a row."""
    if name == "scored-pairs":
        found = []
        for part in ("train", "dev"):
            with (options.sts / f"{part}.tsv").open(encoding="utf-8") as file:
                rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            scored = [row for row in rows if row["score"]]
            found.append(
                [
                    json.dumps({"sentence1": r["sentence1"], "sentence2": r["sentence2"], "label": float(r["score"])})
                    for r in scored
                ]
            )
        return "", found[0], found[1], ".jsonl", "\n"
    if name == "wnut17":
        found = []
        for part in ("train", "test"):
            lines = (options.data / name / f"{part}.conll").read_text(encoding="utf-8").splitlines()
            sentences, current = [], []
            for line in [*lines, ""]:
                if line.strip():
                    current.append(line)
                elif current:
                    sentences.append("\n".join(current))
                    current = []
            found.append(sentences)
        return "", found[0], found[1], ".conll", "\n\n"
    if name == "goemotions":
        found = [
            (options.data / name / f"{part}.tsv").read_text(encoding="utf-8").splitlines() for part in ("train", "test")
        ]
        return "", found[0], found[1], ".tsv", "\n"
    found = []
    for part in ("train", "test"):
        with (options.data / name / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        found.append([quoted(row) for row in rows])
    return "text,category\n", found[0], found[1], ".csv", "\n"


def quoted(row: Sequence[str]) -> str:
    """Return a row as a line of a `.csv` file."""
    return ",".join('"' + value.replace('"', '""').replace("\n", " ") + '"' for value in row)


class Runner:
    """Runs `potstill finetune` many times, several at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.places: Queue[str] = Queue()
        for _ in range(options.parallel):
            for gpu in options.gpus or [""]:
                self.places.put(gpu)

    def run(self, jobs: Sequence[tuple[str, str, str]], rates: dict[tuple[str, str], str], suffix: str = "") -> None:
        """Run jobs, each a row of the table, a task and a seed."""
        with ThreadPoolExecutor(self.places.qsize()) as pool:
            list(pool.map(lambda job: self.one(*job, rates, suffix), jobs))

    def one(self, row: str, name: str, seed: str, rates: dict[tuple[str, str], str], suffix: str) -> None:
        """Run one job, and print its seconds; a failure is printed with its last line, and the others go on."""
        folder = folder_of(self.options, name, row, seed, suffix)
        if (folder / "results.json").exists():
            return
        words = self.words(row, name, seed, rates)
        place = self.places.get()
        started = time.monotonic()
        log = folder.parent / f"{folder.name}.log"
        try:
            with log.open("w") as file:
                environment = os.environ | {"CUDA_VISIBLE_DEVICES": place, "OMP_NUM_THREADS": "1"}
                command = [sys.executable, "-m", "potstill", *words, "--output_dir", str(folder)]
                status = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
        finally:
            self.places.put(place)
        said = "" if status == 0 else f" FAILED: {log.read_text().strip().splitlines()[-1:]}"
        print(f"{name} {row} {seed}{suffix} {time.monotonic() - started:.0f} s{said}", flush=True)

    def words(self, row: str, name: str, seed: str, rates: dict[tuple[str, str], str]) -> list[str]:
        """Return the command of a run without its folder."""
        task, options = TASKS[name], self.options
        data = options.output_dir / name / "data"
        kind, _, part = row.partition("-")
        part = {"": "train", "start": "train", "texts-few": "few"}.get(part, part)
        share = sum(1 for _ in (data / f"train{self.suffix(name)}").open()) / sum(
            1 for _ in (data / f"{part}{self.suffix(name)}").open()
        )
        with_texts = "texts" in row
        teacher = folder_of(options, name, "teacher-few" if row.startswith("own") else "teacher", seed)
        big = row.startswith("teacher")
        epochs = task.teacher_epochs if big else task.epochs
        epochs *= (1 if with_texts else share) / options.divide_epochs
        words = ["finetune", "--task", str(data / f"{part}.yaml"), "--seed", seed]
        words += ["--model", str(teacher) if row.endswith("-start") else options.model]
        words += [] if big else ["--num_hidden_layers", "3", "--layers", rates[name, "layers"]]
        words += ["--learning_rate", rates[name, "teacher" if big else "student"]]
        words += ["--num_train_epochs", f"{epochs:g}", "--per_device_train_batch_size", str(task.batch)]
        words += ["--max_length", str(options.max_length or task.lengths["max_length"])]
        words += ["--max_eval_samples", str(options.max_eval_samples)] if options.max_eval_samples else []
        words += ["--use_cpu"] if not options.gpus else []
        if not big and kind != "plain":
            words += ["--teacher", str(teacher), "--without_teacher_too", "false"]
        if with_texts:
            rest = "rest" if part == "few" else "other"
            words += ["--unlabelled", str(data / f"{rest}{self.suffix(name)}"), "--without_unlabelled_too", "false"]
            columns = task.declaration.get("columns")
            words += ["--unlabelled_columns", "text"] if name == "banking77" else []
            assert columns is None or name == "goemotions"
        return words

    @staticmethod
    def suffix(name: str) -> str:
        """Return the ending of a task's files."""
        return {"banking77": ".csv", "goemotions": ".tsv", "wnut17": ".conll", "scored-pairs": ".jsonl"}[name]


def folder_of(options: argparse.Namespace, name: str, row: str, seed: str, suffix: str = "") -> Path:
    """Return the folder of a run."""
    return Path(options.output_dir / name / f"{row}{suffix}-{seed}")


def choose_rates(options: argparse.Namespace, runner: Runner) -> dict[tuple[str, str], str]:
    """Return the learning rates of teacher and student, and the student's layers: the best ones with one seed.

    The student that chooses is the one without a teacher.
    """
    first = {"teacher": options.learning_rates[0], "student": options.learning_rates[0], "layers": options.layers[0]}
    chosen = {(name, what): value for name in options.tasks for what, value in first.items()}
    if options.teacher_rate:
        chosen |= {(name, "teacher"): options.teacher_rate for name in options.tasks}
    tries = [(rate, layers) for rate in options.learning_rates for layers in options.layers]
    if len(tries) == 1:
        return chosen

    def tried(rate: str, layers: str) -> None:
        values = {"teacher": rate, "student": rate, "layers": layers}
        used = {(name, what): value for name in options.tasks for what, value in values.items()}
        rows = ["plain"] if layers != options.layers[0] or options.teacher_rate else ["teacher", "plain"]
        runner.run([(row, name, CHOICE_SEED) for row in rows for name in options.tasks], used, f"-{rate}-{layers}")

    with ThreadPoolExecutor(len(tries)) as pool:
        list(pool.map(lambda one: tried(*one), tries))
    for name in options.tasks:
        for row, whats in (("teacher", ("teacher",)), ("plain", ("student", "layers"))):
            scores = {one: score_of(folder_of(options, name, row, CHOICE_SEED, f"-{one[0]}-{one[1]}")) for one in tries}
            known = {one: score for one, score in scores.items() if score is not None}
            if known:
                best = max(known, key=lambda one: known[one])
                chosen |= {(name, what): value for what, value in zip(whats, best, strict=False)}
            print(f"{name} {row}: {known}", flush=True)
    return chosen


def score_of(folder: Path) -> float | None:
    """Return the score of a run, or None if it failed."""
    path = folder / "results.json"
    return json.loads(path.read_text())["score"] if path.exists() else None


def report(options: argparse.Namespace, rows: dict[str, list[str]], rates: dict[tuple[str, str], str]) -> None:
    """Print the tables and write them, with the differences of each label by `potstill compare --by label`."""
    lines, record = [], {}
    for name, names in rows.items():
        used = [rates[name, what] for what in ("teacher", "student", "layers")]
        lines += [f"\n### {name} (learning rates {used[0]} and {used[1]}, layers {used[2]})\n"]
        lines += [
            "| row | score: median (lowest to highest) | % of the teacher | seconds of training |",
            "|---|--:|--:|--:|",
        ]
        best = None
        for row in names:
            found = [folder_of(options, name, row, seed) / "results.json" for seed in options.seeds]
            results = [json.loads(path.read_text()) for path in found if path.exists()]
            if not results:
                lines.append(f"| {ROWS[row]} | failed | | |")
                continue
            scores = [one["score"] for one in results]
            middle = statistics.median(scores)
            best = middle if row == "teacher" else best
            seconds = statistics.median(one["seconds"]["training"] for one in results)
            kept = f"{100 * middle / best:.1f}" if best else ""
            lines.append(
                f"| {ROWS[row]} | {middle:.2f} ({min(scores):.2f} to {max(scores):.2f}) | {kept} | {seconds:.0f} |"
            )
            record[f"{name}/{row}"] = {
                "scores": scores,
                "metrics": [one["metrics"] for one in results],
                "seconds": [one["seconds"] for one in results],
                "rows": results[0]["rows"],
                "hardware": results[0]["hardware"],
                "versions": results[0]["versions"],
                "teacher_on_labels": results[0].get("teacher_on_labels"),
                "unlabelled": results[0].get("unlabelled"),
                "per_label": [one.get("per_label") for one in results],
            }
        students = [row for row in ("plain", "taught", "taught-start") if row in names]
        named = [f"{row}={folder_of(options, name, row, s)}" for row in ("teacher", *students) for s in options.seeds]
        by_label = [sys.executable, "-m", "potstill", "compare", *named, "--by", "label", "--format", "markdown"]
        labels = subprocess.run(by_label, capture_output=True, text=True)
        (options.output_dir / f"{name}-labels.md").write_text(labels.stdout or labels.stderr)
    (options.output_dir / "tables.md").write_text("\n".join(lines) + "\n")
    (options.output_dir / "results.json").write_text(json.dumps(record, indent=1))
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
