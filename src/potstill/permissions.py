"""Who may read what potstill writes: whoever may read any other file that the user makes."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def share(folder: Path) -> None:
    """Give every file and folder in a folder the rights that the umask leaves, as any other new file has them.

    Some libraries write a temporary file, which its owner alone may read, and rename it: safetensors does so with
    weights. Colleagues could then not load the model. No right is ever taken away, the folder itself stays as it is,
    and links are not followed.

    Args:
        folder: one that potstill has just written. What a user keeps private does not belong into it.
    """
    allowed = ~_umask()
    for parent, folders, files in os.walk(folder):
        for names, wanted in ((folders, 0o777), (files, 0o666)):
            for name in names:
                _allow(os.path.join(parent, name), wanted & allowed)


def _allow(path: str, rights: int) -> None:
    with suppress(OSError):  # a file system without rights, or a file that went away meanwhile
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode) and rights & ~mode:
            os.chmod(path, stat.S_IMODE(mode) | rights)


def _umask() -> int:
    """Return the umask of this process."""
    with suppress(OSError, ValueError, StopIteration):  # Linux tells it
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)  # elsewhere it is known only by changing it: for that moment to the strictest
    os.umask(mask)
    return mask
