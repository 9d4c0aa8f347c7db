"""The suite of semantic textual similarity; see `potstill.tasks.sts`."""

from __future__ import annotations

from pathlib import Path

from potstill.evaluation.suite import EncoderSuite, in_subfolder
from potstill.tasks.glue import STSB
from potstill.tasks.load import TaskDataAbsentError, find_split
from potstill.tasks.metrics import METRICS
from potstill.tasks.sts import read_sts


def _find(folder: Path) -> list[Path]:
    found = in_subfolder("sts")(folder)
    try:
        return [*found, find_split(STSB, "dev", folder)]
    except TaskDataAbsentError:
        return found


SUITE = EncoderSuite("sts", "STS", {"spearman": METRICS["spearman"].short}, embeds=True, read=read_sts, find=_find)
