"""The verbs as small commands whose results are the same in every run, and what of their results must be equal."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samples import WORDS, written_text

from potstill.corpus import Corpus
from potstill.evaluation.results import RunResult
from potstill.training.checkpoints import find_checkpoint, verify

TRAINING = "--use_cpu --per_device_train_batch_size 4 --logging_steps 3 --save_steps 2 --resume_from_checkpoint auto"
LANGUAGE_MODEL = f"{TRAINING} --max_steps 9 --max_eval_samples 8 --eval_steps 4 --learning_rate 1e-3"

SPEEDS = {
    "seconds",
    "date",
    "created",
    "manifest.json",  # the checksum of a manifest itself, in which "created" counts
    "seconds_left",
    "tokens_per_second",
    "rows_per_second",
    "seconds_each",
    "started",
}
SPEEDS |= {"elapsed_seconds", "excluded_seconds", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
"""Names of figures that measure time."""

TIMES = re.compile(
    r"[\d,.:]+ (?:seconds|minutes|hours|s\b|min\b|h\b|rows/s|tokens/s)|[\d,.]+ (?:rows|tokens) (?:a|per) second"
)


@dataclass(frozen=True)
class Work:
    """A command that can be repeated.

    Attributes:
        verb: its name.
        options: its options, without the output folder.
        check: makes sure that what lies in the output folder after a kill is complete or is not taken for complete.
    """

    verb: str
    options: tuple[str, ...]
    check: Callable[[Path, Path], None]

    def argv(self, folder: Path) -> list[str]:
        """Return the words of the command."""
        return [self.verb, *self.options, "--output_dir", str(folder)]


def works(place: Path, teacher: Path) -> dict[str, Work]:
    """Write the inputs of all verbs into a folder, and return the verbs by name."""
    text = place / "text.txt"
    text.write_text(written_text(150, seed=1), encoding="utf-8")
    rng = random.Random(2)
    (place / "glue" / "SST-2").mkdir(parents=True)
    for split, count in (("train", 24), ("dev", 12)):
        labelled = [(" ".join(rng.choices(WORDS[label::2], k=8)), label) for label in (0, 1) for _ in range(count // 2)]
        rows = ["sentence\tlabel", *(f"{words}\t{label}" for words, label in labelled)]
        (place / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    data = ("--task_data", str(place / "glue"))
    corpus, model = str(place / "blocks"), str(place / "task-model")
    sizes = "--num_hidden_layers 4 --hidden_size 32 --num_attention_heads 2 --max_position_embeddings 32 --grow 2,4"
    taught = ("--teacher", model, "--without_teacher_too", "false")
    rounds = "--use_cpu --max_steps 3 --per_device_train_batch_size 8 --seeds 2 --learning_rate 1e-3 --suite glue:sst2"
    models = ("--models", f"teacher={teacher}", f"student={model}")
    found = [
        Work("prepare", ("--text", str(text), "--tokenizer", str(teacher), *PREPARING.split()), check_corpus),
        Work("distill", ("--teacher", str(teacher), "--corpus", corpus, *DISTILLING.split()), check_run),
        Work("pretrain", ("--corpus", corpus, *f"{LANGUAGE_MODEL} {sizes}".split()), check_run),
        Work("finetune", ("--model", str(teacher), *taught, *data, *FINETUNING.split()), check_run),
        Work("evaluate", (*models, *data, *rounds.split()), check_evaluation),
        Work("export", ("--model", model, "--format", "onnx"), check_export),
    ]
    untaught = ("--model", str(teacher), *data, *FINETUNING.split())
    return {work.verb: work for work in found} | {"task model": Work("finetune", untaught, check_run)}


FINETUNING = f"{TRAINING} --save_strategy steps --max_steps 7 --learning_rate 1e-3 --task sst2"
PREPARING = "--block_size 16 --validation_fraction 0.2 --num_proc 2"
DISTILLING = f"{LANGUAGE_MODEL} --layers alternate --save_total_limit 1"


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of every file in a folder by its path, without figures that measure time.

    What has a hidden name, or lies in a folder with one, is left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name != "SHA256SUMS" and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix in (".md", ".txt"):
        return TIMES.sub("TIME", path.read_text(encoding="utf-8"))
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name not in SPEEDS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return the names of files that only one of two folders has, or whose contents differ."""
    return [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]


def check_corpus(folder: Path, whole: Path) -> None:
    """A corpus is there as a whole or not at all."""
    if folder.exists():
        assert Corpus.open(folder).fingerprint == Corpus.open(whole).fingerprint


def check_run(folder: Path, whole: Path) -> None:
    """The checkpoint to go on from is good, and a folder with results has all files of the finished run."""
    if not folder.exists():
        return
    checkpoint = find_checkpoint("auto", str(folder))
    if checkpoint is not None:
        verify(checkpoint)
    if (folder / "results.json").exists():
        names = [path.name for path in whole.iterdir() if path.is_file()]
        ours, theirs = contents(folder), contents(whole)
        assert [name for name in names if ours.get(name) != theirs.get(name)] == []


def check_evaluation(folder: Path, whole: Path) -> None:
    """A result is that of the whole evaluation."""
    for file in folder.glob("[!.]*/[!.]*/seed-*.json"):
        assert RunResult.load(file).metrics == RunResult.load(whole / file.relative_to(folder)).metrics


def check_export(folder: Path, whole: Path) -> None:
    """An export is there as a whole or not at all."""
    if folder.exists():
        assert differences(contents(folder), contents(whole)) == []
