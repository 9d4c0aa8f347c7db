"""What is recorded of the software behind a figure: versions that tell one build from another."""

from __future__ import annotations

import importlib
from importlib import metadata


def versions(*packages: str) -> dict[str, str]:
    """Return package → version, by `version`."""
    return {package: version(package) for package in packages}


def version(package: str) -> str:
    """Return the version of an installed package; of torch with its build, such as "2.13.0+cu130".

    What PyPI calls torch 2.13.0 is another build on each system, and only torch itself says which. A package that was
    installed under another name (onnxruntime-gpu) or not at all (a checkout on the path) is asked for its own word.
    """
    if package != "torch":
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return str(getattr(importlib.import_module(package), "__version__", "unknown"))
