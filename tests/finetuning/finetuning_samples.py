"""The words, the data files and the runs that the tests of fine-tuning share."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from potstill import PotstillError
from potstill.cli import main

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [a + b + c for a in ("bo", "do", "ki", "lu") for b in "lmn" for c in ("", "a", "e")]
VOCABULARY = [*SPECIAL, ".", "?", *WORDS]
LENGTH = 128

Json = dict[str, Any]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write_sst2(folder: Path, train: int = 30, dev: int = 12) -> None:
    """A sentence's first word tells its label; their lengths differ."""
    rng = random.Random(0)
    for split, count in (("train", train), ("dev", dev)):
        rows = [
            f"{('bol', 'kim')[n % 2]} {sentence(rng, rng.randint(1, 20))} .\t{('0', '1')[n % 2]}" for n in range(count)
        ]
        write(folder / "SST-2" / f"{split}.tsv", "\n".join(["sentence\tlabel", *rows]) + "\n")


def write_stsb(folder: Path) -> None:
    rng = random.Random(1)
    for split, count in (("train", 20), ("dev", 9)):
        rows = [
            {"sentence1": sentence(rng, 5), "sentence2": sentence(rng, rng.randint(1, 9)), "label": 5 * rng.random()}
            for _ in range(count)
        ]
        write_lines(folder / "STS-B" / f"{split}.jsonl", rows)


def write_mnli(folder: Path) -> None:
    rng = random.Random(2)
    for split, count in (("train", 20), ("dev_matched", 6), ("dev_mismatched", 9)):
        rows = [
            {"premise": sentence(rng, 6), "hypothesis": sentence(rng, rng.randint(1, 9)), "label": rng.randrange(3)}
            for _ in range(count)
        ]
        write_lines(folder / "MNLI" / f"{split}.jsonl", rows)


def write_squad(folder: Path) -> None:
    """Contexts that are several windows of 96 tokens; in 2.0 every second question has no answer."""
    for version in ("1.1", "2.0"):
        for split, articles in (("train", 4), ("dev", 2)):
            data = squad_articles(f"{version}-{split}", articles, version == "2.0")
            write(folder / f"{split}-v{version}.json", json.dumps({"version": version, "data": data}))


def squad_articles(name: str, count: int, some_impossible: bool = False) -> list[Json]:
    rng = random.Random(name)
    articles = []
    for article in range(count):
        words = [rng.choice(WORDS) for _ in range(90)]
        questions = []
        for number in range(3):
            at = rng.randrange(85)
            answer = {"text": " ".join(words[at : at + 2]), "answer_start": len(" ".join([*words[:at], ""]))}
            impossible = some_impossible and number == 1
            qa: Json = {"id": f"{name}-{article}-{number}", "question": f"{sentence(rng, 3)} ?", "answers": [answer]}
            questions.append(qa | {"answers": [], "is_impossible": True} if impossible else qa)
        articles.append(
            {"title": f"article {article}", "paragraphs": [{"context": " ".join(words) + ".", "qas": questions}]}
        )
    return articles


def write_lines(path: Path, rows: list[Json]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


SIZES: Json = {
    "use_cpu": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "logging_steps": 1,
}
SPANS: Json = {"max_length": 96, "stride": 8}


def flags(**options: Any) -> list[str]:
    """The command line of a fine-tuning; None leaves an option out."""
    options = SIZES | (SPANS if str(options.get("task")).startswith("squad") else {}) | options
    words = ["finetune"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def finetuned(**options: Any) -> Json:
    """Run the verb as the command line does; return its results."""
    status = main(flags(**options))
    if status != 0:
        raise PotstillError(f"the exit status is {status}")
    return results(Path(options["output_dir"]))


def results(folder: Path) -> Json:
    found: Json = json.loads((folder / "results.json").read_text())
    return found


def with_labels(teacher: Path, place: Path, *names: str, order: list[int]) -> Path:
    """Copy a teacher whose classes then stand in another order, under other names."""
    shutil.copytree(teacher, place)
    weights = load_file(place / "model.safetensors")
    head = {name: tensor[order].contiguous() for name, tensor in weights.items() if name.startswith("classifier")}
    save_file(weights | head, place / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    (place / "config.json").write_text(json.dumps(config))
    return place


FIRST = {"bol": "zebra", "kim": "apple", "lun": "mango"}
"""The first word of a text tells its label."""


def own_rows(count: int, seed: int) -> list[Json]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        first = list(FIRST)[number % 3]
        labels = [FIRST[first], *(["long"] if number % 2 else [])]
        text = " ".join([first, *(["dol"] if number % 2 else []), sentence(rng, rng.randint(1, 6))])
        rows.append({"text": text, "other": "bom ?", "label": FIRST[first], "labels": labels, "score": number % 3})
    return rows
