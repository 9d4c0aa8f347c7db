"""Words that agree with a number."""

from __future__ import annotations

import pytest

from potstill.wording import agreeing, counted


@pytest.mark.parametrize(
    ("number", "rows", "queries"),
    [
        (0, "0 rows", "0 queries"),
        (1, "1 row", "1 query"),
        (2, "2 rows", "2 queries"),
        (1200, "1,200 rows", "1,200 queries"),
    ],
)
def test_a_noun_agrees_with_its_number(number: int, rows: str, queries: str) -> None:
    assert counted(number, "row") == rows
    assert counted(number, "query", "queries") == queries
    assert agreeing(number, "is", "are") == ("is" if number == 1 else "are")
