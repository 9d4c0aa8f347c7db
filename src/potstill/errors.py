"""What potstill raises when the user, not the program, has something to mend, and how it quotes other errors."""


class PotstillError(Exception):
    """Bad input or an impossible request, told in one sentence: what, where, what to do.

    The command line prints the message alone and exits with `exit_status`; from Python it is an ordinary exception.
    """

    exit_status = 1


def first_line(error: BaseException) -> str:
    """Return what a library's error says as part of a sentence: its first line, without the stop or colon at its end.

    An error that says nothing gives the name of its type.
    """
    return next(iter(str(error).strip().splitlines()), "").rstrip(".: ") or type(error).__name__
