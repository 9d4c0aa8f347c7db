"""The options of synthetic texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potstill.errors import PotstillError


@dataclass(frozen=True)
class AugmentOptions:
    """How many synthetic texts are made from a labelled row, and how they differ from it.

    Attributes:
        samples: texts for each row, before those that occur twice are left out. The paper made 20, or 10 of long sets.
        mask: probability that a word is masked.
        replace: probability that a word is replaced by one of the same class.
        ngram: probability that only an n-gram of a text is kept.
        tagger: folder or hub name of a model for token classification, whose tags are the classes of words; None for
            the classes of `potstill.finetuning.word_classes.ending`.
        seed: of all draws. It does not depend on the seed of the run, so that runs share the texts and their logits.

    Raises:
        PotstillError: a value is not valid.
    """

    samples: int
    mask: float = 0.1
    replace: float = 0.1
    ngram: float = 0.25
    tagger: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PotstillError(f"--augment: {name} is {value!r}: it must be a whole number from {least}.")
        for name in ("mask", "replace", "ngram"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise PotstillError(f"--augment: {name} is {value!r}: it must be a probability, from 0 to 1.")
        if self.mask + self.replace + self.ngram == 0 or math.fsum((self.mask, self.replace)) > 1:
            raise PotstillError(
                f"--augment: mask is {self.mask}, replace {self.replace} and ngram {self.ngram}: one must be above 0, "
                "and mask and replace together at most 1."
            )
        if self.tagger is not None and not (isinstance(self.tagger, str) and self.tagger):
            raise PotstillError(f"--augment: tagger is {self.tagger!r}: it must be the folder or the name of a model.")

    @classmethod
    def read(cls, given: Any) -> AugmentOptions:
        """Return the options of a number, or of a mapping.

        Raises:
            PotstillError: it is neither, or the mapping names something else.
        """
        if isinstance(given, int) and not isinstance(given, bool):
            given = {"samples": given}
        if not isinstance(given, Mapping):
            raise PotstillError(f"--augment is {given!r}: it must be a number, or a mapping such as {{samples: 20}}.")
        known = [field.name for field in fields(cls)]
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise PotstillError(f"--augment: there is no {unknown!r}; it takes {', '.join(known)}.")
        if "samples" not in given:
            raise PotstillError("--augment names no samples: say how many texts to make from every row.")
        return cls(**given)
