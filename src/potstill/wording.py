"""Numbers in messages, with words that agree with them."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 row", "1,200 rows".

    Args:
        number: of the things.
        noun: what they are, in the singular.
        plural: the noun in the plural; with an s if not given.
    """
    return f"{number:,} {agreeing(number, noun, plural or f'{noun}s')}"


def agreeing(number: int, singular: str, plural: str) -> str:
    """Return the word that agrees with a number, such as "is" or "are"."""
    return singular if number == 1 else plural
