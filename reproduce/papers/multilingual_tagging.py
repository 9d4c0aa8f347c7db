"""Tsai et al. 2019: a multilingual tagger of parts of speech, and a student of 3 layers that learns from its logits.

    python -m reproduce.papers.multilingual_tagging --ud ud/ --xquad xquad/ --text 'text/simple-wikipedia-*.jsonl.zst'
    python -m reproduce.papers.multilingual_tagging --ud ud/ --xquad xquad/ --model MULTILINGUAL-ENCODER

`--ud` has treebanks called `en-train.conllu`, `en-dev.conllu`, `en-test.conllu` and so on. A language is trained on its
training file, or else on its dev file. One that has a test file alone is never seen in training (zero-shot). `--xquad`
has files called `xquad.en.json`. Both folders may also lie in `--task_data`.

The teacher is pre-trained on the text of the treebanks (but for the test files), on the contexts of XQuAD, and on a
part of `--text`, which is English. Languages are sampled with the exponent 0.7. With `--model` nothing is pre-trained.
The tagger and its student are trained once for each seed. The student is also trained without the unlabelled text, and
on the labels alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.bench.inference.bench import bench_inference
from potstill.bench.inference.inference_arguments import BenchInferenceArguments
from potstill.corpus.lines import decoded_lines, open_hashed
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import find_sources
from potstill.errors import PotstillError
from potstill.files import complete_folder
from potstill.report.markdown import table
from reproduce.common import Place, new_parser, place_of, read_json, run, write_result
from reproduce.runs import Done, Job, run_job, run_jobs
from reproduce.table3 import figures

NAME = "multilingual_tagging"
EXPONENT = 0.7
SENTENCES_IN_A_DOCUMENT = 20
"""Sentences of a treebank that are joined to a document, so that the pre-training reads running text."""

ROWS = {
    "teacher": "teacher",
    "labels": "student, labels alone",
    "taught": "student, taught",
    "unlabelled": "student, taught with unlabelled text",
}


def new_options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = new_parser(__doc__, minutes=0.75, runs_per_gpu=3)
    parser.add_argument("--ud", type=Path, help="folder of treebanks")
    parser.add_argument("--xquad", type=Path, help="folder of XQuAD's files, for their contexts")
    parser.add_argument("--task_data", type=Path, help="folder with ud/ and xquad/, in place of these options")
    parser.add_argument("--text", nargs="+", help="English text, as for `potstill prepare`")
    parser.add_argument("--model", help="multilingual encoder to start from, in place of pre-training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=20, help="how much of --text is pre-trained on (20)")
    parser.add_argument("--unlabelled_megabytes", type=float, default=2, help="how much of it teaches the student (2)")
    parser.add_argument("--vocab_size", type=int, default=16000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--student_layers", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of the tagger and its student")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--requests", type=int, default=100, help="sentences for the milliseconds")
    return parser


def main(argv: list[str]) -> None:
    """Pre-train, fine-tune, distil, measure, and write the table."""
    options, more = new_options().parse_known_args(argv)
    ud, xquad = (
        folder or (options.task_data and options.task_data / name)
        for folder, name in ((options.ud, "ud"), (options.xquad, "xquad"))
    )
    for name, folder in (("--ud", ud), ("--xquad", xquad)):
        if folder is None or not folder.is_dir():
            print(f"multilingual tagging is left out: there is no folder {folder or ''}; name it with {name}.")
            return
    if options.model is None and not options.text:
        print("multilingual tagging is left out: --text names no English text, and --model no multilingual encoder.")
        return
    if options.seeds < 1:
        raise PotstillError(f"--seeds is {options.seeds}: give 1 or more.")
    place = place_of(options, more)
    banks = treebanks(ud)
    texts = write_texts(place, options, banks, xquad)
    if options.model is None:
        pretrained = pretrain(place, options, texts)
    taggers = run_jobs(
        [_tagger(place, options, banks, pretrained.folder if options.model is None else options.model, seed)
         for seed in range(options.seeds)],
        place,
    )  # fmt: skip
    students = run_jobs(
        [_student(place, options, banks, texts, tagger.folder, seed) for seed, tagger in enumerate(taggers)],
        place,
    )
    trained = [language for language, files in banks.items() if len(files) > 1]
    zero_shot = [language for language in banks if language not in trained]
    scores = {name: _by_language(found) for name, found in _scores(taggers, students).items()}
    timed = _timed(place, options, banks, taggers[0].folder, students[0].folder)
    first = read_json(students[0].folder / "results.json")
    write_result(
        place,
        NAME,
        {
            "languages": {"trained": trained, "zero_shot": zero_shot},
            "training_files": {language: _training(files).name for language, files in banks.items() if len(files) > 1},
            "rows": read_json(taggers[0].folder / "results.json")["rows"],
            "unlabelled": first["unlabelled"],
            "seeds": options.seeds,
            "scores": scores,
            "inference": timed,
            "cost": {
                "pretraining": pretrained.cost if options.model is None else None,
                "taggers": [done.cost for done in taggers],
                "students": [done.cost for done in students],
            },
        },
    )
    print(markdown(scores, trained, zero_shot, timed))


def treebanks(folder: Path) -> dict[str, dict[str, Path]]:
    """Return language → split → file, of the languages that have a test file.

    Raises:
        PotstillError: the folder has no treebank, or no language to train on.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.conllu")):
        language, _, split = file.stem.rpartition("-")
        if split in ("train", "dev", "test"):
            found.setdefault(language, {})[split] = file
    found = {language: files for language, files in found.items() if "test" in files}
    if not any(len(files) > 1 for files in found.values()):
        raise PotstillError(
            f"--ud {folder} has no language with a test file and a file to train on, such as en-train.conllu and "
            "en-test.conllu."
        )
    return found


def _training(files: dict[str, Path]) -> Path:
    return files["train"] if "train" in files else files["dev"]


def write_texts(place: Place, options: Namespace, banks: dict[str, dict[str, Path]], xquad: Path) -> Path:
    """Write the text of each language into a folder of its own, unless that is done, and return the folder of all.

    A language has `treebank.jsonl`, `contexts.jsonl` and, if it is English, `corpus.jsonl`. `unlabelled.jsonl` beside
    the languages is a smaller part of the corpus.
    """
    folder = place.work / "texts"
    if folder.is_dir():
        print(f"{folder}: already written", flush=True)
        return folder
    with complete_folder(folder) as partial:
        for language, files in banks.items():
            sentences = [text for split, file in files.items() if split != "test" for text in sentences_of(file)]
            step = SENTENCES_IN_A_DOCUMENT
            documents = (" ".join(sentences[start : start + step]) for start in range(0, len(sentences), step))
            _write(partial / language / "treebank.jsonl", documents)
        for file in sorted(xquad.glob("xquad.*.json")):
            articles = read_json(file)["data"]
            contexts = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
            _write(partial / file.name.split(".")[1] / "contexts.jsonl", contexts)
        if options.text:
            sources = find_sources(options.text, place.work)
            _write(partial / "en" / "corpus.jsonl", _first(sources, options.megabytes))
            _write(partial / "unlabelled.jsonl", _first(sources, options.unlabelled_megabytes))
    return folder


def sentences_of(file: Path) -> Iterator[str]:
    """Yield the text of each sentence of a treebank, as its comments have it.

    Raises:
        PotstillError: there are no such comments.
    """
    count = 0
    with open_hashed(str(file)) as content:
        for _, line in decoded_lines(str(file), content):
            if isinstance(line, str) and line.startswith("# text = "):
                count += 1
                yield line.removeprefix("# text = ").strip()
    if not count:
        raise PotstillError(f"{file} has no comments `# text = …`, from which its text is read.")


def _first(sources: Any, megabytes: float) -> Iterator[str]:
    """Yield the first documents, of so many megabytes."""
    left = megabytes * 1e6
    for document in DocumentReader(sources, ReadingOptions()):
        if left <= 0:
            return
        left -= len(document)
        yield document.decode()


def _write(path: Path, texts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    if lines:
        path.write_text("".join(lines), encoding="utf-8")


def pretrain(place: Place, options: Namespace, texts: Path) -> Done:
    """Prepare the text of all languages with one cased vocabulary, and pre-train an encoder on it."""
    languages = [folder for folder in sorted(texts.iterdir()) if folder.is_dir() and any(folder.iterdir())]
    prepared = run_job(
        Job(
            "blocks",
            "prepare",
            {
                "text": languages,
                "block_size": 128,
                "train_tokenizer": True,
                "vocab_size": options.vocab_size,
                "lowercase": False,
                "language_exponent": EXPONENT,
            },
            distributed=False,
        ),
        place,
    )
    settings = {
        "corpus": prepared.folder,
        "num_hidden_layers": options.layers,
        "hidden_size": options.hidden_size,
        "num_attention_heads": max(1, options.hidden_size // 64),
        "max_position_embeddings": 128,
        "dropout": 0.0,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 256 if place.gpus else 32,
        "num_train_epochs": 1000,
        "logging_steps": 200,
        "eval_strategy": "no",
        "save_steps": 5000,
        "report_to": "none",
    }
    if place.gpus:
        settings |= {"bf16": True, "dataloader_num_workers": 2}
    return run_job(Job("pretrained", "pretrain", settings, options.minutes), place)


def _tagger(place: Place, options: Namespace, banks: dict[str, dict[str, Path]], model: Any, seed: int) -> Job:
    settings = _tagging(options, banks, seed) | {"model": model}
    return Job(f"tagger-{seed}", "finetune", settings, distributed=False, more=place.more)


def _student(
    place: Place, options: Namespace, banks: dict[str, dict[str, Path]], texts: Path, teacher: Path, seed: int
) -> Job:
    """Return the job of a student that begins with layers of its teacher."""
    unlabelled = [*sorted(texts.glob("*/treebank.jsonl")), *sorted(texts.glob("*/contexts.jsonl"))]
    unlabelled += [file for file in [texts / "unlabelled.jsonl"] if file.is_file()]
    settings = _tagging(options, banks, seed) | {
        "model": teacher,
        "num_hidden_layers": options.student_layers,
        "teacher": teacher,
        "unlabelled": unlabelled,
    }
    return Job(f"student-{seed}", "finetune", settings, distributed=False, more=place.more)


def _tagging(options: Namespace, banks: dict[str, dict[str, Path]], seed: int) -> dict[str, Any]:
    return {
        "task": "tagging",
        "train_data": [_training(files) for files in banks.values() if len(files) > 1],
        "eval_data": [files["test"] for files in banks.values()],
        "metric": "accuracy",
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "seed": seed,
        "report_to": "none",
    }


def _scores(taggers: Sequence[Done], students: Sequence[Done]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each row of the table, one for each seed."""
    read = [read_json(done.folder / "results.json") for done in students]
    return {
        "teacher": [read_json(done.folder / "results.json") for done in taggers],
        "labels": [results["without_teacher"] for results in read],
        "taught": [results["without_unlabelled"] for results in read],
        "unlabelled": read,
    }


def _by_language(found: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return language → the accuracy on its test file with each seed."""
    first = found[0]["metrics"]
    if "accuracy" in first:  # a single test file is called `dev`
        raise PotstillError("--ud has one test file: the table needs two languages or more.")
    names = [name for name, metrics in first.items() if isinstance(metrics, dict)]
    return {name.removesuffix("-test"): [one["metrics"][name]["accuracy"] for one in found] for name in names}


def _timed(
    place: Place, options: Namespace, banks: dict[str, dict[str, Path]], teacher: Path, student: Path
) -> dict[str, Any]:
    """Return the size of both models, and the time of a sentence on the CPU with one thread."""
    texts = {language: list(sentences_of(files["test"])) for language, files in banks.items()}
    each = max(1, options.requests // len(texts))
    spread = [found[number * len(found) // each] for found in texts.values() for number in range(min(each, len(found)))]
    requests = place.work / "requests.txt"
    requests.write_text("".join(f"{text.replace(chr(9), ' ')}\n" for text in spread), encoding="utf-8")
    args = BenchInferenceArguments(
        models=[f"teacher={teacher}", f"student={student}"],
        data=str(requests),
        threads=1,
        batch_size=[1],
        compiled=False,
        max_length=128,
        output=str(place.work / "inference.json"),
    )
    return figures(bench_inference(args))


def markdown(
    scores: dict[str, dict[str, list[float]]], trained: Sequence[str], zero_shot: Sequence[str], timed: dict[str, Any]
) -> str:
    """Return the table: the median of the seeds for each language, and of the means over the trained languages."""
    header = ["accuracy", *trained, "mean", *(f"{name} (zero-shot)" for name in zero_shot)]
    header += ["parameters", "MB", "ms a sentence"]
    rows = []
    for name, by_language in scores.items():
        means = [statistics.mean(of) for of in zip(*(by_language[language] for language in trained), strict=True)]
        columns = [*(by_language[language] for language in trained), means, *(by_language[name] for name in zero_shot)]
        size = timed["rows"]["teacher" if name == "teacher" else "student"]
        milliseconds = next(iter(size["forms"].values()))["milliseconds"]
        rows.append(
            [
                ROWS[name],
                *(_figure(values) for values in columns),
                f"{size['parameters'] / 1e6:.1f} M",
                f"{size['bytes'] / 1e6:.0f}",
                f"{milliseconds:.1f}",
            ]
        )
    return table(header, rows, figures=True)


def _figure(values: Sequence[float]) -> str:
    median = f"{statistics.median(values):.1f}"
    return median if len(values) == 1 else f"{median} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    sys.exit(run(main))
