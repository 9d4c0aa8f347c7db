"""What stands below each table in docs/results/paper.md: how it was measured."""

from __future__ import annotations

from typing import Any

from potstill.report.markdown import plain, visible


def measured_with(conditions: dict[str, Any]) -> str:
    """Return the command, the hardware, the versions and the date of a measurement."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items() if name != "potstill")
    where = f"{conditions['gpus']} × {conditions['hardware']}" if conditions["gpus"] else conditions["hardware"]
    where, versions = plain(where), plain(versions)
    commit = f", commit {conditions['commit']}" if conditions["commit"] else ""
    return f"    {visible(conditions['command'])}\n\n{where}, {versions}, {conditions['date']}{commit}."
