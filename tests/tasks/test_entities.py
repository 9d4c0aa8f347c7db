"""Entities of tagged words, beside seqeval's own counts and beside a definition that looks at every pair of places."""

from __future__ import annotations

import random

import pytest

from potstill.tasks.entities import Scheme, entity_counts, in_all

Sentences = list[list[str]]

# From seqeval 1.2.2, `100 * f1_score(gold, found)` of what `sentences(marks)` draws; for BILU with E for L and S for U,
# letters that seqeval knows in its strict mode alone.
SEQEVAL = {
    "BI": 68.0161943319838,
    "I": 60.09852216748768,
    "IE": 67.18750000000001,
    "BIES": 77.70270270270271,
    "BILU": 77.70270270270271,
}


def sentences(marks: str, seed: int = 3) -> tuple[Sentences, Sentences]:
    """Tags at random, as they should be and as they are found: 70 % of them are the same."""
    rng = random.Random(seed)
    names = ["O", *(f"{mark}-{kind}" for mark in marks for kind in ("PER", "LOC"))]
    gold = [[rng.choice(names) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    return gold, [[tag if rng.random() < 0.7 else rng.choice(names) for tag in tags] for tags in gold]


def scheme_of(*tagged: Sentences) -> Scheme:
    scheme = Scheme.of({tag for some in tagged for tags in some for tag in tags})
    assert scheme is not None
    return scheme


def entity_f1(scheme: Scheme, found: Sentences, gold: Sentences) -> float:
    return in_all(entity_counts(scheme, found, gold)).scores["f1"]


def by_definition(tags: list[str]) -> set[tuple[int, int, str]]:
    """Every stretch of words that begins, goes on and ends as an entity does."""
    parts = [(tag[0], tag[2:]) for tag in tags]

    def goes_on(at: int) -> bool:
        if not 0 < at < len(parts):
            return False
        (before, kind_before), (mark, kind) = parts[at - 1], parts[at]
        return before in "BIM" and mark in "IMEL" and kind == kind_before

    return {
        (first, last, parts[first][1])
        for first in range(len(parts))
        for last in range(first + 1, len(parts) + 1)
        if parts[first][0] != "O" and not goes_on(first) and all(map(goes_on, range(first + 1, last)))
        if not goes_on(last)
    }


@pytest.mark.parametrize("marks", SEQEVAL)
def test_f1_is_seqeval_s(marks: str) -> None:
    gold, found = sentences(marks)
    scheme = scheme_of(gold, found)
    assert entity_f1(scheme, found, gold) == pytest.approx(SEQEVAL[marks], abs=1e-9)
    assert entity_f1(scheme, gold, gold) == 100


def test_well_formed_tags_count_as_in_seqeval_s_strict_mode() -> None:
    gold = [["B-PER", "L-PER", "U-PER", "U-PER", "O", "U-LOC", "B-LOC", "I-LOC", "L-LOC"], ["O", "U-PER", "B-A", "L-A"]]
    found = [["B-PER", "L-PER", "U-PER", "O", "O", "U-LOC", "B-LOC", "L-LOC", "O"], ["U-PER", "U-PER", "B-A", "L-A"]]
    # `100 * f1_score(gold, found, mode="strict", scheme=BILOU)` of seqeval 1.2.2
    assert entity_f1(scheme_of(gold, found), found, gold) == pytest.approx(71.42857142857143)


@pytest.mark.parametrize("marks", ["BI", "I", "IE", "BIES", "BILU", "BMES", "BMEW", "IES"])
def test_entities_are_those_of_the_definition(marks: str) -> None:
    for seed in range(20):
        for tags in sentences(marks, seed)[0]:
            assert set(scheme_of([tags, ["B-PER"]]).entities(tags)) == by_definition(tags), tags


@pytest.mark.parametrize(
    "write",
    [
        lambda tag: tag,
        lambda tag: tag.replace("-", "_"),
        lambda tag: tag if tag == "O" else f"{tag[2:]}-{tag[0]}",
        lambda tag: tag if tag == "O" else f"{tag[2:]}_{tag[0]}",
    ],
)
def test_the_mark_may_stand_before_or_behind(write: object) -> None:
    gold, found = ([[write(tag) for tag in tags] for tags in some] for some in sentences("BIES"))  # type: ignore[operator]
    assert entity_f1(scheme_of(gold, found), found, gold) == pytest.approx(SEQEVAL["BIES"])


def test_marks_without_kinds_and_kinds_with_hyphens() -> None:
    assert list(scheme_of([["B", "I", "O"]]).entities(["I", "I", "B", "O"])) == [(0, 2, ""), (2, 3, "")]
    tags = ["B-geo-loc", "I-geo-loc", "I-geo"]
    assert list(scheme_of([tags]).entities(tags)) == [(0, 2, "geo-loc"), (2, 3, "geo")]


def test_a_name_beside_the_scheme_is_an_entity_of_its_own_and_not_passed_over() -> None:
    scheme = Scheme.of(["O", "B-PER", "I-PER", "DATE"])
    assert scheme is not None
    assert list(scheme.entities(["DATE", "DATE", "B-PER", "O"])) == [(0, 2, "DATE"), (2, 3, "PER")]


@pytest.mark.parametrize(
    "names",
    [
        ["NOUN", "VERB", "ADJ"],
        ["A", "B", "C", "S", "E", "V"],  # parts of speech by letters
        ["O", "PER", "LOC"],
        ["LABEL_0", "LABEL_1"],
        ["O"],
        [],
        ["I-PER", "NOUN"],
    ],
)
def test_names_that_mark_no_entities(names: list[str]) -> None:
    assert Scheme.of(names) is None
