"""The page of promises names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_each_promise_names_its_test() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    promises = [row for row in rows if len(row) == 7 and row[1] not in ("", "potstill promises")]
    assert len(promises) > 30
    for fault, _, _, proof, *_ in promises:
        named = re.findall(r"`([\w/]+)`", proof)
        assert named or "](#" in proof or "`make " in proof, fault
        for name in named:
            assert (TESTS / f"{name}.py").is_file(), name
