"""Permissions of the files that potstill writes: the same as those of any other new file of the user."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def share(folder: Path) -> None:
    """Give every file and folder in a folder the permissions of any other new file, as the umask allows them.

    Some libraries write a temporary file that only its owner may read, and then rename it: safetensors does so with
    weights. Colleagues could then not load the model. No permission is ever removed, the folder itself is not changed,
    and links are not followed.

    Args:
        folder: a folder that potstill has just written. It must not hold private files of the user.
    """
    allowed = ~_umask()
    for parent, folders, files in os.walk(folder):
        for names, wanted in ((folders, 0o777), (files, 0o666)):
            for name in names:
                _allow(os.path.join(parent, name), wanted & allowed)


def _allow(path: str, permissions: int) -> None:
    with suppress(OSError):  # the file system has no permissions, or the file was removed meanwhile
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode) and permissions & ~mode:
            os.chmod(path, stat.S_IMODE(mode) | permissions)


def _umask() -> int:
    """Return the umask of this process."""
    with suppress(OSError, ValueError, StopIteration):  # only Linux has this file
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)  # other systems return the umask only when it is changed: set a strict one for a moment
    os.umask(mask)
    return mask
