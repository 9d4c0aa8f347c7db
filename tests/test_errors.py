import errno

import pytest

from potstill.errors import MOST_PRINTED, advice, shown


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "disk space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "removes or renames"),
        (errno.ENOTEMPTY, "no other process"),
    ],
)
def test_advice_fits_the_cause(number: int, expected: str) -> None:
    assert expected in advice(OSError(number, "what the system says"))
    assert ("disk space" in advice(OSError(number, ""))) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_advice_reads_the_number_that_a_rust_library_puts_into_its_text() -> None:
    assert advice(Exception("No space left on device (os error 28)")) == advice(OSError(errno.ENOSPC, ""))


def test_advice_for_what_is_not_known_blames_nothing() -> None:
    assert (
        advice(OSError("no number at all")) == advice(ValueError("neither")) == "check the path and the disk it lies on"
    )


def test_a_message_neither_moves_the_cursor_nor_fills_the_terminal():
    assert shown("the label 'a\x1b]0;title\x07\nb\u202e' is – unusual") == (
        r"the label 'a\x1b]0;title\x07\nb\u202e' is – unusual"
    )
    long = shown("beginning " + "x" * 10**6 + " end")
    assert len(long) < MOST_PRINTED + 10
    assert long.startswith("beginning x")
    assert long.endswith("x end")
