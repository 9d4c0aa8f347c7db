"""Put the built page into the package: `make web` runs this once `npm run build` has filled dist/.

The runtimes are packed, for git and the wheel carry them, and a record is written of what the page was built from, by
which a test sees that it was not forgotten.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

WEB = Path(__file__).parent
STATIC = WEB.parent / "src" / "potstill" / "serve" / "static"
RECORD = "built.json"
PACKED = ".xz"  # as potstill.serve.server knows it


def sources() -> list[Path]:
    """Return the files that decide what the page is."""
    return [WEB / name for name in ("build.mjs", "package-lock.json", "package.json", "tsconfig.json")] + sorted(
        path for folder in ("licenses", "src") for path in (WEB / folder).rglob("*") if path.is_file()
    )


def checksum(files: list[Path], base: Path) -> str:
    """Return one checksum of the names and contents of files."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(base).as_posix()}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def built(static: Path = STATIC) -> list[Path]:
    """Return the files of the page in the package, all but the record."""
    return sorted(path for path in static.rglob("*") if path.is_file() and path.name != RECORD)


def pack() -> None:
    """Fill the package's folder from dist/."""
    dist = WEB / "dist"
    new = {file.relative_to(dist): file.read_bytes() for file in sorted(dist.rglob("*")) if file.is_file()}
    packed = {path.with_name(path.name + PACKED): path for path in new if path.suffix == ".wasm"}
    # What has not changed stays as it is: another version of the packer may write the same in other bytes.
    kept = {path for path, of in packed.items() if _unpacked(STATIC / path) == new[of]}
    for old in [STATIC / RECORD, *built()]:
        if old.relative_to(STATIC) not in kept:
            old.unlink(missing_ok=True)
    for path, of in packed.items():
        content = new.pop(of)
        if path not in kept:
            new[path] = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    for path, content in new.items():
        (STATIC / path).parent.mkdir(parents=True, exist_ok=True)
        (STATIC / path).write_bytes(content)
    packages = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    record = {
        "packages": packages["dependencies"] | packages["devDependencies"],
        "sources": checksum(sources(), WEB),
        "built": checksum(built(), STATIC),
    }
    (STATIC / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in STATIC.rglob("*") if file.is_file())
    print(f"{STATIC.relative_to(WEB.parent)}: {size / 1e6:.1f} MB")


def _unpacked(file: Path) -> bytes | None:
    return lzma.decompress(file.read_bytes()) if file.is_file() else None


if __name__ == "__main__":
    pack()
