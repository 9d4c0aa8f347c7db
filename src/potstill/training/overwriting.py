"""An output folder that a new run overwrites: the old output stays until the new run has something to put there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

JOURNAL = ".overwrite.json"
"""Names what is going to be replaced. The file exists from the start of a run until its first result."""
ASIDE = ".overwritten"
ALL_ASIDE = "all-moved"
"""In `ASIDE` once everything old is there."""
WRITTEN = (
    *("checkpoint-*", ".checkpoint*", "config.json", "generation_config.json", "model*.safetensors"),
    *("model*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "recipe.yaml", "results.json", "README.md", "training_args.bin"),
)
"""What runs write. Nothing else in a folder is ever removed."""


def plan_overwriting(folder: Path) -> None:
    """Note what an earlier run has left in a folder, so that the first result of the new run replaces it."""
    names = sorted({path.name for pattern in WRITTEN for path in folder.glob(pattern)})
    if names:
        (folder / JOURNAL).write_text(json.dumps(names) + "\n", encoding="utf-8")


def is_overwriting(folder: str | Path) -> bool:
    """Return whether what lies in a folder is still an earlier run's, and about to be replaced."""
    return (Path(folder) / JOURNAL).is_file()


@contextmanager
def replacing_old_output(folder: Path) -> Iterator[None]:
    """Let the old output go, if a new run overwrites it, while the body puts the new run's first result there.

    When the body fails, or the process is killed before the result is there, the old output comes back: at once, or
    when a run next uses the folder (`recover_old_output`).
    """
    if not is_overwriting(folder):
        yield
        return
    aside = folder / ASIDE
    aside.mkdir(exist_ok=True)
    for name in json.loads((folder / JOURNAL).read_text(encoding="utf-8")):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    (folder / JOURNAL).rename(aside / ALL_ASIDE)
    try:
        yield
    except BaseException:
        recover_old_output(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def recover_old_output(folder: Path, still_overwriting: bool = False) -> None:
    """Finish an overwriting that was cut short: the folder then holds the old output or the new one, never both.

    Args:
        folder: of the run.
        still_overwriting: whether the run that overwrites is going on, and the old output is still to be replaced.
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
