"""The verbs of the command line. Each is one function of the Python API; its signature is its options."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from potstill.errors import PotstillError

VERBS = {
    "prepare": ("potstill.corpus.prepare:prepare", "text in, fixed-length token blocks out"),
    "distill": ("potstill.training.distill:distill", "a teacher and blocks in, a student of half its depth out"),
    "pretrain": ("potstill.training.pretrain:pretrain", "the same engine without a teacher: masked LM from scratch"),
    "demo": ("potstill.demo.demo:demo", "the whole job on an embedded teacher and text, offline, on a CPU"),
}

USAGE = "\n".join(
    [
        "usage: potstill VERB [options]      potstill VERB --help",
        "",
        "Distil a transformer encoder into one half its depth.",
        "",
        *(f"  {verb:<10}{what}" for verb, (_, what) in VERBS.items()),
        "  version   the installed version",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 1 failed, 2 misused, 128 + n ended by signal n."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if verb in ("version", "--version"):
        from importlib.metadata import version

        print(version("potstill"))
        return 0
    if verb not in VERBS:
        print(f"potstill: there is no verb {verb!r}; the verbs are {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    module, _, function = VERBS[verb][0].partition(":")
    try:
        _quiet_libraries()
        from potstill.options import call

        result = call(getattr(importlib.import_module(module), function), f"potstill {verb}", rest)
        if os.environ.get("RANK", "0") == "0":  # of the processes that a launcher started, one speaks
            print(f"wrote {result}/" if isinstance(result, Path) else result, flush=True)
    except PotstillError as error:
        print(f"potstill {verb}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"potstill {verb}: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End by unwinding the stack, so that what was begun is cleared away."""
    print("potstill: terminated.", file=sys.stderr)
    sys.exit(128 + number)


def _quiet_libraries() -> None:
    """Leave standard error to potstill's own lines, unless the user asked the libraries to speak."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
