"""What `potstill version --verbose` prints: all that a report of a bug should say of the machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

ALWAYS = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub", "numpy")


def verbose() -> str:
    """Return the versions of potstill, Python and the libraries, the platform, the GPUs, and the extras.

    An extra is "yes" if all of its packages are installed.
    """
    lines = {"potstill": version("potstill"), "Python": f"{platform.python_version()} ({sys.executable})"}
    lines |= {"platform": f"{platform.platform()}, {os.cpu_count()} cores"}
    lines |= {name: _version(name) or "not installed" for name in ALWAYS}
    lines |= {"GPUs": _gpus()}
    lines |= {f"extra {name}": _extra(packages) for name, packages in extras().items()}
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def extras() -> dict[str, list[str]]:
    """Return the extras of the installed package, with the packages of each."""
    found: dict[str, list[str]] = {}
    for requirement in requires("potstill") or []:
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and name[0] != "potstill":
            found.setdefault(extra[1], []).append(name[0])
    return found


def _extra(packages: list[str]) -> str:
    missing = [name for name in packages if _version(name) is None]
    there = ", ".join(f"{name} {_version(name)}" for name in packages if name not in missing)
    return f"no: {', '.join(missing)} not installed" if missing else f"yes: {there}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken installation is what a report may be about
        return f"unknown, because torch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return f"none that torch can use (built for CUDA {torch.version.cuda or '–, so for the CPU alone'})"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})"
