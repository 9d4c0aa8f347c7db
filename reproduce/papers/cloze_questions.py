"""Questions on Wikipedia that nobody had to write: a sentence with a blank, and a passage that has the missing name.

    python -m reproduce.papers.cloze_questions --text 'text/wikipedia-*.jsonl.zst' --output_dir cloze/
    potstill finetune --model MODEL --task questions --train_data cloze/train.json --eval_data cloze/dev.json …

The question is a sentence of an article in which a name is blanked. (Hermann et al. 2015, arXiv 1506.03340, blanked
names in summaries of news.) The context is another passage of the same article that holds the name. The answer is the
name. Files are in SQuAD's format. Whole articles are either in `train.json` or in `dev.json`; a hash of their text
decides.

No simple trick gives the answer, and `baselines` measures some of them:

- The name is no part of the title, which most passages of an article would repeat.
- The context has at least four other names that are not in the question. One of them occurs as often as the answer.
- No word of the name is left in the question.
- The passage begins at a random place, so that the answer is no more likely in its middle than elsewhere.

An article seldom says the same twice. So a part of the questions cannot be answered from their passage, and nobody
would reach 100 %.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.files import check_output_dir, complete_folder
from potstill.json_files import json_text
from potstill.tasks.rows import BadRows, json_rows
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_score import score_answers
from reproduce.common import run

BLANK = "_____"
OTHERS = 4
"""How many other names a context has at least that could be the answer."""

SENTENCE, CONTEXT = range(60, 260), range(400, 1000)
"""Lengths of a question and of its context, in characters."""

PER_ARTICLE = 4

READ, TRIED = 20_000, 60
"""How many characters of an article are read, and how many of its sentences are tried."""

_WORD = r"[A-Z][\w’'-]+"
_NAME = re.compile(rf"{_WORD}(?: (?:(?:of the|of|de|la|van|von) )?{_WORD})*")
_END = re.compile(r"(?<=[a-z0-9)\"”]{2}[.!?])\s+(?=[A-Z\"“])|\n+")
_INSIDE = re.compile(r"[a-z,;:)] $")
"""The end of a text after which a capital letter does not begin a sentence."""

_CALENDAR = (
    "January February March April May June July August September October November December Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday"
)
_NO_NAMES = frozenset(f"{_CALENDAR} The This These That Those There It Its In On At He She His Her They".split())


@dataclass(frozen=True)
class Question:
    """A sentence with a blank, a context, and the name that was blanked."""

    text: str
    context: str
    answer: str

    def names(self) -> list[str]:
        """Return the names in the context that could be the answer, in order, as often as they occur."""
        return [name for name in names_in(self.context) if name not in self.text]


def names_in(text: str) -> list[str]:
    """Return the names in a text in order. A capital letter at the beginning of a sentence makes no name."""
    return [
        match[0].removesuffix("'s").removesuffix("’s")
        for match in _NAME.finditer(text)
        if match[0] not in _NO_NAMES and _INSIDE.search(text[max(0, match.start() - 2) : match.start()])
    ]


def questions_on(article: str, rng: random.Random) -> Iterator[Question]:
    """Yield questions on an article, whose first line is its title; each is on a sentence and a name of its own."""
    title, _, body = article.partition("\n")
    of_title = {word.casefold() for word in re.findall(r"\w{3,}", title)}
    body = body[:READ]
    borders = [0, *(match.end() for match in _END.finditer(body)), len(body)]
    sentences = [(start, end) for start, end in pairwise(borders) if end > start]
    starts = [start for start, _ in sentences]
    asked: set[str] = set()
    for place in rng.sample(range(len(sentences)), min(TRIED, len(sentences))):
        sentence = body[slice(*sentences[place])].strip()
        if len(sentence) not in SENTENCE or not sentence.endswith("."):
            continue
        names = [name for name in dict.fromkeys(names_in(sentence)) if name not in asked]
        for name in rng.sample(names, len(names)):
            if of_title & {word.casefold() for word in re.findall(r"\w+", name)}:
                continue
            holding = {bisect_right(starts, at) - 1 for at in _places(name, body)} - {place}
            context = _passage(body, sentences, sorted(holding), place, rng) if holding else None
            question = None if context is None else Question(_blanked(sentence, name), context, name)
            if question is not None and is_fair(question):
                asked.add(name)
                yield question
                break


def _blanked(sentence: str, name: str) -> str:
    parts, last = [], 0
    for at in _places(name, sentence):
        parts.append(sentence[last:at])
        last = at + len(name)
    return BLANK.join([*parts, sentence[last:]])


def is_fair(question: Question) -> bool:
    """Return whether no simple trick gives the answer; see the beginning of this file."""
    words = {word for word in re.findall(r"\w+", question.answer) if word[0].isupper()}
    if {word.casefold() for word in words} & set(re.findall(r"\w+", question.text.casefold())):
        return False
    count = Counter(question.names())
    others = {name: times for name, times in count.items() if name != question.answer}
    alike = any(words & set(name.split()) for name in others)  # a longer or shorter form of the answer
    if alike or question.answer not in count or len(others) < OTHERS:
        return False
    return max(others.values()) >= len(_places(question.answer, question.context))


def _passage(
    body: str, sentences: Sequence[tuple[int, int]], holding: Sequence[int], without: int, rng: random.Random
) -> str | None:
    """Return a passage of whole sentences that lies around one of `holding` and leaves `without` out.

    None if it would be too short or too long.
    """
    first = last = rng.choice(holding)
    before = rng.random()  # the share of what is added that is before the sentence with the answer
    target = rng.choice(CONTEXT)
    while sentences[last][1] - sentences[first][0] < target:
        can = [at for at in (first - 1, last + 1) if 0 <= at < len(sentences) and at != without]
        if not can:
            break
        at = can[0 if rng.random() < before else -1]
        first, last = min(first, at), max(last, at)
    context = body[sentences[first][0] : sentences[last][1]].strip()
    return context if len(context) in CONTEXT else None


def _places(name: str, text: str) -> list[int]:
    """Return where a name stands in a text as words of its own. Compiling a pattern for each name takes longer."""
    found, at = [], text.find(name)
    while at >= 0:
        if not (text[at - 1 : at].isalnum() or text[at + len(name) : at + len(name) + 1].isalnum()):
            found.append(at)
        at = text.find(name, at + len(name))
    return found


def write(files: Sequence[str], folder: Path, train: int, dev: int) -> dict[str, int]:
    """Write `train.json` and `dev.json`, and return the number of questions in each.

    Raises:
        PotstillError: the text has too few questions, or cannot be read.
    """
    articles = {}
    for file in files:
        for _, row in json_rows(file, BadRows()):
            articles[hashlib.sha256(row["text"].encode()).hexdigest()] = row["text"]
    wanted = {"dev": dev, "train": train}
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in wanted}
    counts: Counter[str] = Counter()
    for digest in sorted(articles):
        split = next((split for split, count in wanted.items() if counts[split] < count), None)
        if split is None:
            break
        limit = min(PER_ARTICLE, wanted[split] - counts[split])
        made = list(islice(questions_on(articles[digest], random.Random(digest)), limit))
        if made:
            paragraphs = [_paragraph(one, f"{digest[:16]}-{number}") for number, one in enumerate(made)]
            found[split].append({"title": articles[digest].partition("\n")[0], "paragraphs": paragraphs})
            counts[split] += len(made)
    if counts.total() < train + dev:
        raise PotstillError(
            f"The text has only {counts.total():,} questions, and {train + dev:,} are wanted: give more text, or lower "
            "--train and --dev."
        )
    with complete_folder(folder) as partial:
        for split, data in found.items():
            text = json_text({"version": "cloze", "data": data}, f"{split}.json")
            (partial / f"{split}.json").write_text(text + "\n", encoding="utf-8")
    return dict(counts)


def _paragraph(question: Question, name: str) -> dict[str, Any]:
    answer = {"text": question.answer, "answer_start": _places(question.answer, question.context)[0]}
    return {"context": question.context, "qas": [{"id": name, "question": question.text, "answers": [answer]}]}


def baselines(file: Path) -> dict[str, dict[str, float]]:
    """Return exact match and F1, in percent, of answers that need no model, by name.

    `first`: the first name in the context that is not in the question. `most frequent`: the most frequent one; of
    several the first. `nearest sentence`: the first one in the sentence that shares most words with the question.
    """
    data = read_squad(file).dataset
    rows = zip(data["id"][:], data["question"][:], data["context"][:], data["answers"][:], strict=True)
    asked = {number: Question(text, context, answers["text"][0]) for number, text, context, answers in rows}
    tricks: dict[str, Callable[[Question], str]] = {
        "first": lambda one: one.names()[0],
        "most frequent": lambda one: Counter(one.names()).most_common(1)[0][0],
        "nearest sentence": _in_nearest_sentence,
    }
    answers = {name: {number: trick(one) for number, one in asked.items()} for name, trick in tricks.items()}
    return {name: score_answers(data, found) for name, found in answers.items()}


def _in_nearest_sentence(question: Question) -> str:
    words = set(re.findall(r"\w+", question.text.casefold()))
    best, found = -1, ""
    for sentence in filter(None, _END.split(question.context)):
        names = [name for name in names_in(sentence) if name not in question.text]
        shared = len(words & set(re.findall(r"\w+", sentence.casefold())))
        if names and shared > best:
            best, found = shared, names[0]
    return found


def files_of(patterns: Sequence[str]) -> list[str]:
    """Return the files of some patterns in order.

    Raises:
        PotstillError: a pattern has no file.
    """
    found = []
    for pattern in patterns:
        files = sorted(glob(str(Path(pattern).expanduser())))
        if not files:
            raise PotstillError(f"There is no file {pattern}: name files of JSON lines with articles.")
        found += files
    return found


def main(argv: list[str]) -> None:
    """Write the questions, and print what answers without a model score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--text", nargs="+", required=True, help="files of JSON lines, or patterns of names")
    parser.add_argument("--output_dir", required=True, help="the folder to write")
    parser.add_argument("--train", type=int, default=20_000, help="questions to train on (20000)")
    parser.add_argument("--dev", type=int, default=2000, help="questions to score (2000)")
    options = parser.parse_args(argv)
    folder = check_output_dir(options.output_dir, overwrite=False)
    counts = write(files_of(options.text), folder, options.train, options.dev)
    print(f"wrote {folder}/: {counts['train']:,} questions to train on, {counts['dev']:,} to score")
    for name, scores in baselines(folder / "dev.json").items():
        print(f"{name}: exact match {scores['exact']:.1f}, F1 {scores['f1']:.1f}")


if __name__ == "__main__":
    sys.exit(run(main))
