"""The verbs of the command line. Each is one function of the Python API; its signature is its options."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from potstill.command_line import parse
from potstill.errors import PotstillError, first_line, shown
from potstill.help_text import full_help, short_help
from potstill.imports import quick_imports
from potstill.option_table import function_of, verb_of
from potstill.panics import is_panic
from potstill.processes import first_to_fail, leave_group
from potstill.surroundings import check_surroundings, open_closed_streams

VERBS: dict[str, tuple[str, str]] = {
    "prepare": ("potstill.corpus.prepare:prepare", "turn text into token blocks of one length"),
    "distill": ("potstill.distillation:distill", "train a student of half the teacher's depth"),
    "pretrain": ("potstill.training.pretrain:pretrain", "train a masked LM from scratch, without a teacher"),
    "finetune": ("potstill.finetuning.finetune:finetune", "train a model on a task and score it"),
    "evaluate": ("potstill.evaluation.evaluate:evaluate", "run models × tasks × seeds and print tables with retention"),
    "compare": ("potstill.evaluation.compare:compare", "print the results of several models side by side"),
    "report": ("potstill.pages.report:report", "write one HTML page of any runs, evaluations, exports and benches"),
    "prune": ("potstill.compress.prune:prune", "remove the heads and neurons of a task model that matter least"),
    "export": ("potstill.export.export:export", "convert a model for another runtime and check it against its source"),
    "serve": ("potstill.serve.serve:serve", "open a page on this machine that runs exported models in the browser"),
    "demo": ("potstill.demo.demo:demo", "run all steps on an embedded teacher and text, offline, on a CPU"),
    "bench train": (
        "potstill.bench.train:bench_train",
        "measure how fast the training step of a recipe is on this machine",
    ),
    "bench inference": (
        "potstill.bench.inference.bench:bench_inference",
        "measure each form of models on this machine: size, memory, latency, and the limit",
    ),
}

TERMINATING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that end a verb, and its training after the current step: see `potstill.training.signals`."""

HELP, HELP_ALL = {"-h", "--help"}, {"--help-all", "--help_all"}

USAGE = "\n".join(
    [
        "usage: potstill VERB [options]      potstill VERB --help",
        "",
        "Distil a transformer encoder into a student of half its depth.",
        "",
        *(f"  {verb:<17}{what}" for verb, (_, what) in VERBS.items()),
        f"  {'version':<17}print the installed version; with --verbose what a report of a bug needs",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 success, 1 failure, 2 usage error, 128 + n ended by signal n."""
    open_closed_streams()
    _print_anything()
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    length = 2 if " ".join(words[:2]) in VERBS else 1  # `bench train` is one verb
    verb, rest = " ".join(words[:length]), words[length:]
    if verb in ("-h", "--help", "help"):
        return _print_text(USAGE)
    if verb in ("version", "--version"):
        return _print_version(rest)
    if verb not in VERBS:
        return _no_verb(verb, rest)
    before = _handle(TERMINATING, _terminate)
    where = VERBS[verb][0]
    try:
        described = verb_of(verb, where)
        if HELP & set(rest):
            print(short_help(verb, described))
            return 0
        if HELP_ALL & set(rest):
            print(full_help(verb, described))
            return 0
        values = parse(described, f"potstill {verb}", rest)
        check_surroundings()
        # Heavy imports come last, so that a usage error is reported at once.
        with quick_imports():
            _quiet_libraries()
            from potstill.signatures import apply

            function = function_of(where)
        result = apply(function, values)
        if os.environ.get("RANK", "0") == "0":  # only one of a launcher's processes prints
            _print_result(result)
        leave_group()
    except PotstillError as error:
        _fail(f"potstill {verb}: {error}")
        return error.exit_status
    except KeyboardInterrupt as error:
        _fail(f"potstill {verb}: interrupted.")
        number = error.args[0] if error.args else None  # a training names its second signal
        return 128 + (number if isinstance(number, int) else signal.SIGINT)
    except BrokenPipeError:
        return _reader_gone()
    except MemoryError as error:
        reason = f" ({first_line(error)})" if str(error) else ""
        _fail(
            f"potstill {verb}: there is not enough memory{reason}: close other programs, raise the limit on memory "
            "(ulimit -v), or use a machine with more."
        )
        return 1
    except RuntimeError as error:
        if "home directory" in str(error):  # the words of `Path.expanduser`
            _fail(
                f"potstill {verb}: a path begins with ~, but there is no such user, or the user has no home folder: "
                "write the whole path."
            )
            return 1
        if first_to_fail():
            raise
        return 1  # the connection broke because another process failed first; that process printed the reason
    except BaseException as error:
        if not is_panic(error):
            raise
        _fail(
            f"potstill {verb}: a library failed on its input ({first_line(error)}): look for a damaged file or for "
            "text that is unlike the rest."
        )
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    return 0


def _print_text(text: str) -> int:
    """Print a text, and return the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _reader_gone()
    return 0


def _reader_gone() -> int:
    """Return the exit status for a pipe whose reader has ended, such as `head`. Nothing more is printed to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _print_version(rest: Sequence[str]) -> int:
    """Print the version, with `--verbose` also those of the libraries, the platform and the GPUs."""
    if unknown := [word for word in rest if word not in ("--verbose", "-v")]:
        print(f"potstill version: {unknown[0]!r} is unknown; there is --verbose.", file=sys.stderr)
        return 2
    if rest:
        from potstill.version import verbose

        return _print_text(verbose())
    from importlib.metadata import version

    print(version("potstill"))
    return 0


def _no_verb(word: str, rest: Sequence[str]) -> int:
    """Print the verbs that the user may have meant, and return the exit status: 0 if the user asked for help."""
    longer = [verb for verb in VERBS if verb.startswith(f"{word} ")]
    if not longer:
        print(f"potstill: there is no verb {word!r}; the verbs are {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    if rest and rest[0] in ("-h", "--help", "help"):
        print("\n".join(f"potstill {verb} [options]    {VERBS[verb][1]}" for verb in longer))
        return 0
    named = bool(rest) and not rest[0].startswith("-")
    message = f"there is no verb '{word} {rest[0]}'; there is" if named else f"{word!r} needs a second word:"
    print(f"potstill: {message} {', '.join(longer)}.", file=sys.stderr)
    return 2


def _fail(message: str) -> None:
    """Print why the run ends, unless another process of the run has printed a reason already."""
    # A launcher terminates the other processes when one ends. This one must print its message first.
    _handle([signal.SIGTERM], signal.SIG_IGN)
    if first_to_fail():
        with suppress(OSError):  # nobody can read it, but the exit status still tells how the run ended
            print(shown(message), file=sys.stderr, flush=True)


def _handle(numbers: Iterable[int], handler: Any) -> dict[int, Any]:
    """Set the handler of signals and return those before. Only the main thread can; in others nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End by unwinding the stack, so that unfinished files are removed."""
    if first_to_fail():
        with suppress(OSError):
            print("potstill: terminated.", file=sys.stderr)
    sys.exit(128 + number)


def _print_result(result: object) -> None:
    try:
        folder = "/" if isinstance(result, Path) and result.is_dir() else ""
        print(f"wrote {result}{folder}" if isinstance(result, Path) else result, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:  # standard output is a file on a full disk, say
        raise PotstillError(f"The verb is done, but its result cannot be printed: {error.strerror}.") from error


def _print_anything() -> None:
    """Print a character that the terminal cannot show as `\\u2192`, so that no result is lost."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _quiet_libraries() -> None:
    """Keep the libraries from printing to standard error, unless the user asked for their messages."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RUST_BACKTRACE", "0")
    from transformers.utils import logging

    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
