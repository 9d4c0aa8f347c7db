"""Retrieval: how far up a model finds the relevant passages of a whole corpus, in folders of BEIR's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from potstill.errors import PotstillError
from potstill.evaluation.scorers import Scorer
from potstill.evaluation.search import search
from potstill.evaluation.suite import EncoderSuite, in_subfolder
from potstill.tasks.labels import score_of
from potstill.tasks.pairs import fingerprint_of
from potstill.tasks.ranking import ndcg, recall, reciprocal_rank
from potstill.tasks.rows import PACKED, BadRows, NumberedRow, OnBadRows, json_rows, text_fault, text_lines
from potstill.wording import counted

PASSAGES_AT_A_TIME = 2**16
"""Passages whose embeddings are in memory at the same time."""

JUDGEMENTS = ("query-id", "corpus-id", "score")
SPLITS = ("test", "dev", "validation")


@dataclass(frozen=True)
class RetrievalSet:
    """A corpus, queries, and what is relevant to each; see `EncoderSet`.

    Attributes:
        name: name of the folder.
        passages: texts of all passages, with the title first.
        queries: texts of the queries that have a relevant passage.
        relevant: for each query, place of a passage → its relevance, above 0.
        left_out: see `EncoderSet`.
    """

    name: str
    passages: list[str]
    queries: list[str]
    relevant: list[dict[int, float]]
    left_out: dict[str, int]

    @property
    def rows(self) -> dict[str, int]:
        """The numbers of queries and of passages."""
        return {"queries": len(self.queries), "passages": len(self.passages)}

    @cached_property
    def fingerprint(self) -> str:
        """See `EncoderSet`."""
        return fingerprint_of([self.passages, self.queries, self.relevant])

    def score(self, scorer: Scorer) -> dict[str, Any]:
        """Return the means over the queries of nDCG@10, which is the score, MRR@10, and recall@10 and @100."""
        starts = range(0, len(self.passages), PASSAGES_AT_A_TIME)
        blocks = (scorer.vectors(self.passages[start : start + PASSAGES_AT_A_TIME], "passage") for start in starts)
        _, places = search(scorer.vectors(self.queries, "query"), blocks, 100)
        values: dict[str, list[float]] = {name: [] for name in METRICS}
        for found, relevant in zip(places.tolist(), self.relevant, strict=True):
            gains = [relevant.get(place, 0.0) for place in found]
            values["ndcg@10"].append(ndcg(gains, relevant.values(), 10))
            values["mrr@10"].append(reciprocal_rank(gains, 10))
            values["recall@10"].append(recall(gains, len(relevant), 10))
            values["recall@100"].append(recall(gains, len(relevant), 100))
        means = {name: 100 * fmean(of_queries) for name, of_queries in values.items()}
        return means | {"score": means["ndcg@10"]}


def read(sources: Sequence[Path], columns: Sequence[str] | None, on_bad_rows: OnBadRows) -> list[RetrievalSet]:
    """Read folders with `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`; each folder is a set.

    Args:
        sources: such folders, and folders of such folders.
        columns: must be None, because the layout decides the names.
        on_bad_rows: ``stop`` or ``skip``.

    Raises:
        PotstillError: there is no such folder; an id is unknown or occurs twice, a text is empty, or a judgement has no
            score, unless such rows are skipped; or no query is left.
    """
    folders = []
    for source in sources:
        if not source.is_dir():
            raise PotstillError(
                f"--retrieval_data {source} is not a folder: name one with corpus.jsonl and queries.jsonl."
            )
        if _packed(source / "corpus.jsonl") is not None:
            folders.append(source)
            continue
        inside = [folder for folder in sorted(source.iterdir()) if _packed(folder / "corpus.jsonl") is not None]
        if not inside:
            raise PotstillError(
                f"--retrieval_data {source} has no corpus.jsonl, and no folder in it has one: name a folder of BEIR's "
                "layout."
            )
        folders += inside
    return [_read(folder, on_bad_rows) for folder in folders]


def _read(folder: Path, on_bad_rows: OnBadRows) -> RetrievalSet:
    bad_passages, bad_queries, bad_judgements = (BadRows(on_bad_rows) for _ in range(3))
    corpus, queries = _needed(folder, "corpus.jsonl"), _needed(folder, "queries.jsonl")
    passages, texts = _texts(corpus, bad_passages), _texts(queries, bad_queries)
    place_of = {name: place for place, name in enumerate(passages)}
    judgements = _judgements(folder)
    relevant: dict[str, dict[int, float]] = {name: {} for name in texts}
    seen = set()
    for number, row in _judgement_rows(judgements, bad_judgements):
        where = f"{judgements}, line {number}"
        query, passage = (_id(row.get(name)) for name in JUDGEMENTS[:2])
        score = score_of(row.get(JUDGEMENTS[2]))
        if query is None or passage is None:
            bad_judgements.add(f"{where}, has no {JUDGEMENTS[0]!r} or no {JUDGEMENTS[1]!r}")
        elif score is None:
            bad_judgements.add(f"{where}, has the score {row.get(JUDGEMENTS[2])!r}, which is not a number")
        elif query not in relevant:
            bad_judgements.add(f"{where}, names the query {query!r}, which {queries.name} does not have")
        elif passage not in place_of:
            bad_judgements.add(f"{where}, names the passage {passage!r}, which {corpus.name} does not have")
        elif (query, passage) in seen:
            bad_judgements.add(f"{where}, judges the passage {passage!r} a second time for the query {query!r}")
        else:
            seen.add((query, passage))
            if score > 0:
                relevant[query][place_of[passage]] = score
    bad_judgements.report(str(judgements), len(seen))
    kept = [name for name in texts if relevant[name]]
    if not kept:
        raise PotstillError(f"{judgements} marks no passage as relevant: give a file with scores above 0.")
    counts = {
        "queries without a relevant passage": len(texts) - len(kept),
        "bad": sum(bad.count for bad in (bad_passages, bad_queries, bad_judgements)),
    }
    return RetrievalSet(
        folder.resolve().name,
        [*passages.values()],
        [texts[name] for name in kept],
        [relevant[name] for name in kept],
        {reason: count for reason, count in counts.items() if count},
    )


def _texts(file: Path, bad: BadRows) -> dict[str, str]:
    """Return id → text, with the title and a blank before it if there is one."""
    found: dict[str, str] = {}
    for number, row in json_rows(str(file), bad):
        where = f"{file}, line {number}"
        name = _id(row.get("_id", row.get("id")))
        text, title = row.get("text"), row.get("title") or ""
        fault = text_fault(text, "a 'text'") or text_fault(title, "a 'title'")
        if name is None:
            bad.add(f"{where}, has no 'id' or '_id' that is a text or a whole number")
        elif name in found:
            bad.add(f"{where}: the id {name!r} occurs a second time")
        elif fault is not None:
            bad.add(f"{where}: {fault}")
        elif not f"{title}{text}".strip():
            bad.add(f"{where}, has an empty text")
        else:
            found[name] = f"{title} {text}".strip()
    bad.report(str(file), len(found))
    if not found:
        raise PotstillError(f"{file} holds no text: check that it is the right file.")
    return found


def _judgement_rows(file: Path, bad: BadRows) -> Iterator[NumberedRow]:
    """Yield the rows of qrels by the names in `JUDGEMENTS`. A first line whose third field is no number is a header."""
    if ".jsonl" in file.suffixes:
        yield from json_rows(str(file), bad)
        return
    for number, line in text_lines(str(file), bad):
        fields = line.split("\t")
        if number == 1 and (len(fields) != 3 or score_of(fields[2]) is None):
            if fields != list(JUDGEMENTS):
                bad.add(
                    f"{file}, line 1, is neither the header {' '.join(JUDGEMENTS)} nor such a row, with tabs between"
                )
        elif len(fields) != 3:
            bad.add(f"{file}, line {number}, has {counted(len(fields), 'column')} instead of 3: tabs separate them")
        else:
            yield number, dict(zip(JUDGEMENTS, fields, strict=True))


def _judgements(folder: Path) -> Path:
    """Return the file of judgements: `qrels.tsv`, `qrels.jsonl`, or in the folder `qrels` that of the test set."""
    names = ["qrels", *(f"qrels/{split}" for split in SPLITS)]
    for name in names:
        for ending in (".tsv", ".jsonl"):
            if (file := _packed(folder / f"{name}{ending}")) is not None:
                return file
    raise PotstillError(f"{folder} has no qrels.tsv, no qrels.jsonl and no qrels/test.tsv: name a folder that has one.")


def _needed(folder: Path, name: str) -> Path:
    file = _packed(folder / name)
    if file is None:
        raise PotstillError(f"{folder} has no {name}: name a folder of BEIR's layout, which has one.")
    return file


def _packed(file: Path) -> Path | None:
    """Return the file, or its compressed form; None if there is neither."""
    forms = [file.with_name(file.name + ending) for ending in PACKED]
    return next((form for form in forms if form.is_file()), None)


def _id(value: Any) -> str | None:
    """Return an id as text, because files write the same one as a text or as a number; None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    return str(value)


METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@10": "R@10", "recall@100": "R@100"}
SUITE = EncoderSuite("retrieval", "Retrieval", METRICS, embeds=True, read=read, find=in_subfolder("retrieval"))
