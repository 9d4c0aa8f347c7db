"""Turn tags of words into entities, and compute their F1 in the same way as seqeval and CoNLL's own script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Span = tuple[int, int, str]
"""First word, word after the last one, kind of entity."""

OUTSIDE = "O"
MARKS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
"""Letter of a scheme → B (begin), I (inside), E (end) or S (single). Covers IOB, IOE, BIOES, BILOU and BMEWO."""

_PREFIX = re.compile(rf"([{''.join(MARKS)}])[-_](.+)", re.DOTALL)
_SUFFIX = re.compile(rf"(.+)[-_]([{''.join(MARKS)}])", re.DOTALL)


@dataclass(frozen=True)
class Scheme:
    """The meaning of the names of tags.

    Attributes:
        meanings: name → mark (B, I, E or S; O outside) and kind of entity. A name without a mark is a kind of its own:
            consecutive words with that name are one entity.
    """

    meanings: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> Scheme | None:
        """Find the scheme in the names of a model's tags; return None if the names mark no entities.

        They mark entities if a name begins with B- (B-PER), or if all names but O have a mark of `MARKS`: before the
        kind (I-PER, I_PER), after it (PER-I), or without a kind (B, I, O).
        """
        inside = [name for name in names if name != OUTSIDE]
        prefixed = {name: _PREFIX.fullmatch(name) for name in inside}
        suffixed = {name: _SUFFIX.fullmatch(name) for name in inside}
        if not inside:
            return None
        if any(name.startswith("B-") and found for name, found in prefixed.items()) or all(prefixed.values()):
            meanings = {name: (MARKS[found[1]], found[2]) if found else ("I", name) for name, found in prefixed.items()}
        elif all(suffixed.values()):
            meanings = {name: (MARKS[found[2]], found[1]) for name, found in suffixed.items() if found}
        elif all(name in MARKS for name in inside):
            meanings = {name: (MARKS[name], "") for name in inside}
        else:
            return None
        return cls(meanings | {OUTSIDE: ("O", "")})

    def entities(self, tags: Iterable[str]) -> Iterator[Span]:
        """Yield the entities of a sentence.

        B and S begin an entity. I and E continue an entity of the same kind. If there is none to continue, they begin
        one: after O, after another kind, or after E or S, which end an entity. CoNLL's own script (Tjong Kim Sang and
        De Meulder 2003, section 2.4) and seqeval without its strict mode use the same rules.
        """
        begin, kind, open_ = 0, "", False
        place = -1
        for place, tag in enumerate(tags):
            mark, of = self.meanings[tag]
            continues = open_ and mark in ("I", "E") and of == kind
            if open_ and not continues:
                yield begin, place, kind
                open_ = False
            if mark != "O":
                if not continues:
                    begin, kind = place, of
                open_ = True
                if mark in ("E", "S"):
                    yield begin, place + 1, kind
                    open_ = False
        if open_:
            yield begin, place + 1, kind


@dataclass
class Counts:
    """Numbers of things that are predicted, that are expected, and that are both."""

    right: int = 0
    predicted: int = 0
    expected: int = 0

    @property
    def scores(self) -> dict[str, Any]:
        """Precision, recall and F1 in percent, 0 where they are not defined, and the support: the number expected."""
        return {
            "precision": 100 * self.right / max(self.predicted, 1),
            "recall": 100 * self.right / max(self.expected, 1),
            "f1": 200 * self.right / max(self.predicted + self.expected, 1),
            "support": self.expected,
        }


def entity_counts(
    scheme: Scheme, predictions: Iterable[Sequence[str]], references: Iterable[Sequence[str]]
) -> dict[str, Counts]:
    """Return kind of entity → the numbers of complete entities over all sentences.

    Args:
        scheme: scheme of the tags.
        predictions: predicted tags of each sentence.
        references: correct tags of each sentence.
    """
    kinds = sorted({kind for mark, kind in scheme.meanings.values() if mark != "O"})
    counts = {kind: Counts() for kind in kinds}
    for prediction, reference in zip(predictions, references, strict=True):
        found, correct = set(scheme.entities(prediction)), set(scheme.entities(reference))
        for *_, kind in found & correct:
            counts[kind].right += 1
        for *_, kind in found:
            counts[kind].predicted += 1
        for *_, kind in correct:
            counts[kind].expected += 1
    return counts


def in_all(counts: dict[str, Counts]) -> Counts:
    """Return the sums over all kinds."""
    every = counts.values()
    return Counts(sum(c.right for c in every), sum(c.predicted for c in every), sum(c.expected for c in every))
