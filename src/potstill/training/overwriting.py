"""Overwriting an output folder: the old output stays until the new run writes its first result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from potstill.files import flush_names, write_text
from potstill.json_files import read_json

JOURNAL = ".overwrite.json"
"""Lists the files that the run will replace. It exists from the start of the run until its first result."""
ASIDE = ".overwritten"
ALL_ASIDE = "all-moved"
"""This file is in `ASIDE` once all old files are there."""
WRITTEN = (
    *("checkpoint-*", ".checkpoint*", "config.json", "generation_config.json", "model*.safetensors"),
    *("model*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "recipe.yaml", "results.json", "README.md", "training_args.bin"),
    *("pruning.json", "pruning.svg", "pruning.png"),
)
"""Files that runs write. Nothing else in a folder is ever removed."""


def plan_overwriting(folder: Path) -> None:
    """List the files of an earlier run in a journal, so that the first result of the new run replaces them."""
    names = sorted({path.name for pattern in WRITTEN for path in folder.glob(pattern)})
    if names:
        write_text(folder / JOURNAL, json.dumps(names) + "\n")


def is_overwriting(folder: str | Path) -> bool:
    """Return whether the files in a folder still belong to an earlier run and will be replaced."""
    return (Path(folder) / JOURNAL).is_file()


@contextmanager
def replacing_old_output(folder: Path) -> Iterator[None]:
    """Remove the old output, if a new run overwrites it, while the body writes the first result of the new run.

    If the body fails, the old output comes back at once. If the process is killed before the result is complete, the
    old output comes back when a run next uses the folder (`recover_old_output`).

    Raises:
        PotstillError: the list of old files is damaged.
    """
    if not is_overwriting(folder):
        yield
        return
    listed = read_json(
        folder / JOURNAL, "The list of files to replace", "start the run again with --overwrite_output_dir"
    )
    aside = folder / ASIDE
    aside.mkdir(exist_ok=True)
    for name in filter(_is_written, listed if isinstance(listed, list) else []):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    (folder / JOURNAL).rename(aside / ALL_ASIDE)
    flush_names(aside)
    flush_names(folder)
    try:
        yield
    except BaseException:
        recover_old_output(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _is_written(name: object) -> bool:
    """Return whether a run writes files of this name. A damaged list could name any other file."""
    return isinstance(name, str) and Path(name).name == name and any(fnmatch(name, pattern) for pattern in WRITTEN)


def recover_old_output(folder: Path, still_overwriting: bool = False) -> None:
    """Repair a folder after an interrupted overwriting: it then has the old output or the new one, never both.

    Args:
        folder: output folder of the run.
        still_overwriting: whether the overwriting run continues and will still replace the old output.
    """
    aside, journal = folder / ASIDE, folder / JOURNAL
    if aside.is_dir():
        moved_all = (aside / ALL_ASIDE).is_file()
        new = moved_all and any(not path.name.startswith(".") for pattern in WRITTEN for path in folder.glob(pattern))
        if not new:
            for path in aside.iterdir():
                path.rename(journal if path.name == ALL_ASIDE else folder / path.name)
        shutil.rmtree(aside, ignore_errors=True)
    if not still_overwriting:
        journal.unlink(missing_ok=True)
