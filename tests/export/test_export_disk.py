"""An output folder that cannot be written: the disk is told, not the model."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export import disk
from potstill.export.disk import disk_errors_reported
from potstill.export.onnx import FLOAT

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")

FULL = "cannot be written (No space left on device): free some disk space, or name another folder"


def raising(error: Exception) -> Any:
    def write(*_: object, **__: object) -> None:
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (RuntimeError("basic_ios::clear: No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "(Disk quota exceeded): free some disk space"),
        (OSError(errno.EFBIG, "File too large"), "(File too large): name another folder"),
    ],
)
@pytest.mark.parametrize("place", ["torch.onnx.export", "onnx.save"])
def test_a_full_disk_is_not_a_model_that_cannot_be_translated(
    error: Exception, told: str, place: str, classifier: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(place, raising(error))
    out = tmp_path / "out"
    if place == "onnx.save":  # what it reads is of no matter
        monkeypatch.setattr("torch.onnx.export", lambda *_, **__: None)
        monkeypatch.setattr("onnx.load", lambda *_: type("Model", (), {"graph": type("Graph", (), {"node": []})}))
    assert main(["export", "--model", str(classifier), "--format", "onnx", "--output_dir", str(out)]) == 1
    message = capsys.readouterr().err
    assert f"--output_dir {out} " in message
    assert told in message
    assert "translated" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_a_library_does_not_tell_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in C++ that closes a file without a look at what became of it, and cannot read it then."""

    @disk_errors_reported(tmp_path, Path("out"))
    def write() -> None:
        raise PotstillError("model.onnx cannot be run by onnxruntime.")

    with pytest.raises(PotstillError, match="cannot be run by onnxruntime"):
        write()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(PotstillError, match="out cannot be written"):
        write()
    assert list(tmp_path.iterdir()) == []
    assert disk.PROBE > 0


def test_a_folder_that_cannot_be_made(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "mkdir", raising(PermissionError(errno.EACCES, "Permission denied")))
    words = ["export", "--model", str(classifier), "--format", "onnx", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 1
    assert "cannot be written (Permission denied): name another folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / FLOAT).exists()
