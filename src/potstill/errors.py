"""What potstill raises when the user, not the program, has something to mend."""


class PotstillError(Exception):
    """Bad input or an impossible request, told in one sentence: what, where, what to do.

    The command line prints the message alone and exits with status 1; from Python it is an ordinary exception.
    """
