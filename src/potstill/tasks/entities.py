"""Tags of words → entities, and their F1, counted as seqeval and CoNLL's own script count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Span = tuple[int, int, str]
"""First word, word after the last, kind."""

OUTSIDE = "O"
MARKS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
"""Letters of the schemes → begin, inside, end, single. IOB, IOE, BIOES, BILOU and BMEWO share these meanings."""

_BEFORE = re.compile(rf"([{''.join(MARKS)}])[-_](.+)", re.DOTALL)
_BEHIND = re.compile(rf"(.+)[-_]([{''.join(MARKS)}])", re.DOTALL)


@dataclass(frozen=True)
class Scheme:
    """What the names of tags mean.

    Attributes:
        meanings: name → mark (B, I, E or S; O outside) and kind of entity. A name that is not of the scheme is an
            entity of its own kind, of which a run of words is one.
    """

    meanings: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> Scheme | None:
        """Learn from the names of a model's tags how they mark entities; None where they mark none.

        They do where a name begins with B- (B-PER), or where all names but O have a mark of `MARKS`: before the kind
        (I-PER, I_PER), behind it (PER-I), or without a kind (B, I, O).
        """
        inside = [name for name in names if name != OUTSIDE]
        before = {name: _BEFORE.fullmatch(name) for name in inside}
        behind = {name: _BEHIND.fullmatch(name) for name in inside}
        if not inside:
            return None
        if any(name.startswith("B-") and found for name, found in before.items()) or all(before.values()):
            meanings = {name: (MARKS[found[1]], found[2]) if found else ("I", name) for name, found in before.items()}
        elif all(behind.values()):
            meanings = {name: (MARKS[found[2]], found[1]) for name, found in behind.items() if found}
        elif all(name in MARKS for name in inside):
            meanings = {name: (MARKS[name], "") for name in inside}
        else:
            return None
        return cls(meanings | {OUTSIDE: ("O", "")})

    def entities(self, tags: Iterable[str]) -> Iterator[Span]:
        """Yield the entities of a sentence.

        B and S begin one. I and E continue one of the same kind, and begin one where there is none: after O, after
        another kind, or after E and S, which end one. So does CoNLL's own script (Tjong Kim Sang and De Meulder 2003,
        section 2.4), and so does seqeval where no strict mode is asked for.
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


def entity_f1(scheme: Scheme, found: Iterable[Sequence[str]], wanted: Iterable[Sequence[str]]) -> float:
    """Return the F1 of whole entities over all sentences, in percent; 0 where there is none, found or wanted.

    Args:
        scheme: of the tags.
        found: tags of each sentence.
        wanted: likewise, as they should be.
    """
    right = mine = theirs = 0
    for some, others in zip(found, wanted, strict=True):
        spans, expected = set(scheme.entities(some)), set(scheme.entities(others))
        right, mine, theirs = right + len(spans & expected), mine + len(spans), theirs + len(expected)
    return 200 * right / max(mine + theirs, 1)
