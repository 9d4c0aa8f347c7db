"""The rights of files that potstill writes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from potstill import permissions
from potstill.permissions import share


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("told_by_linux", [True, False])
def test_files_get_the_rights_that_the_umask_leaves(
    told_by_linux: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not told_by_linux:
        monkeypatch.setattr(permissions, "Path", lambda name: tmp_path / "missing")
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "onnx").chmod(0o2700)
    (folder / "onnx" / "script.sh").touch()
    (folder / "onnx" / "script.sh").chmod(0o711)
    outside = tmp_path / "secret"
    outside.touch(0o600)
    (folder / "link").symlink_to(outside)
    folder.chmod(0o700)
    share(folder)
    assert mode(folder / "model.safetensors") == 0o640
    assert mode(folder / "onnx") == 0o2750
    assert mode(folder / "onnx" / "script.sh") == 0o751
    assert mode(outside) == 0o600
    assert mode(folder) == 0o700
    assert os.umask(0o027) == 0o027


def test_what_cannot_be_changed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch(0o600)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chmod", refuse)
    share(tmp_path)
    assert mode(tmp_path / "file") == 0o600
    share(tmp_path / "missing")
