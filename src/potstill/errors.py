"""The error that potstill raises for a mistake that the user can correct, and how it quotes other errors."""

import errno
import re
import unicodedata

MOST_PRINTED = 2000
"""The longest message that is printed whole, in characters."""


class PotstillError(Exception):
    """Bad input or an impossible request. The message is one sentence: what is wrong, where, and what to do.

    The command line prints only the message and exits with `exit_status`. In Python it is an ordinary exception.
    """

    exit_status = 1


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, without its final stop or colon, to quote it in a sentence.

    For an error without a message, return the name of its type.
    """
    return next(iter(str(error).strip().splitlines()), "").rstrip(".: ") or type(error).__name__


def visible(text: str) -> str:
    r"""Return a text on one line. Invisible characters become escape sequences of Python: "a\nb" becomes "a\\nb".

    These are line breaks, control characters, halves of surrogate pairs, and characters that change the text direction.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or ord(char) in _DIRECTIONS
        else char
        for char in text
    )


def shown(message: str) -> str:
    """Return a message as it is printed: on one line, without the middle of what is longer than `MOST_PRINTED`.

    A message quotes names from files, which may be long, and may hold what moves the cursor of the terminal.
    """
    if len(message) > MOST_PRINTED:
        message = f"{message[: MOST_PRINTED // 2]} […] {message[-MOST_PRINTED // 2 :]}"
    return visible(message)


_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def advice(error: BaseException) -> str:
    """Return what to do about an error of the operating system, as the end of a sentence: ``free some disk space``.

    The text suits both reading and writing, and any file. Libraries written in Rust raise no `OSError`; they put its
    number into their message (``os error 28``), and this function reads it there.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    return _ADVICE.get(number, "check the path and the disk it lies on")


_NO_SPACE = "free some disk space"
_NO_PERMISSION = "check who owns it and its folder, and their permissions"
_SOMETHING_ELSE = "check the path, and that no other process writes there"
_FAILING_DISK = "check the disk or the network drive, and try again"

_ADVICE: dict[int | None, str] = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: f"{_NO_SPACE}, because your quota is used up",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "name a place that is not mounted read-only",
    errno.ENOENT: "check the path, and that no other process removes or renames the folder",
    errno.ENOTDIR: _SOMETHING_ELSE,
    errno.EISDIR: _SOMETHING_ELSE,
    errno.EEXIST: _SOMETHING_ELSE,
    errno.ENOTEMPTY: _SOMETHING_ELSE,
    errno.EBUSY: _SOMETHING_ELSE,
    errno.ETXTBSY: _SOMETHING_ELSE,
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "check the symbolic links in the path, which form a loop",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, because the machine has too many files open",
    errno.ENOMEM: "free some memory",
    errno.EIO: _FAILING_DISK,
    errno.ESTALE: _FAILING_DISK,
    errno.ENODEV: _FAILING_DISK,
    errno.ETIMEDOUT: _FAILING_DISK,
}
