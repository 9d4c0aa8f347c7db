"""Versions of the software behind a measured figure, exact enough to distinguish builds."""

from __future__ import annotations

import importlib
from importlib import metadata


def versions(*packages: str) -> dict[str, str]:
    """Return package → version, as `version` gives it."""
    return {package: version(package) for package in packages}


def version(package: str) -> str:
    """Return the version of an installed package. The version of torch includes its build, such as "2.13.0+cu130".

    On PyPI, torch 2.13.0 is a different build for each system, and only torch itself knows which build it is. A package
    may be installed under another name (onnxruntime-gpu), or not at all (a checkout on the path). Then the version is
    the package's own `__version__`.
    """
    if package != "torch":
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return str(getattr(importlib.import_module(package), "__version__", "unknown"))
