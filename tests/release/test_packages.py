"""The wheel and the source distribution, built and installed in environments of their own."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(*words: object, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions, built by the back end that pyproject.toml names."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


def test_what_is_in_them(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    package = ROOT / "src" / "potstill"
    listed = run("git", "ls-files", "src/potstill", cwd=ROOT).split()
    assert {str(Path(file).relative_to("src")) for file in listed} <= names
    assert "potstill/py.typed" in names
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)
    with tarfile.open(built["sdist"]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "src/potstill/py.typed"} <= inside
    assert {f"recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")} <= inside
    assert (package / "py.typed").is_file()


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_demo_runs_from_it(built: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """A new environment has potstill from the distribution alone. Its dependencies are those of this environment."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # A .pth file that Python reads after the new environment's own packages; of this one, only the dependencies count.
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    run(python, "-m", "pip", "install", "--ignore-installed", *offline, built[kind], cwd=tmp_path)
    where = run(python, "-c", "import potstill; print(potstill.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    potstill = tmp_path / "venv" / "bin" / "potstill"
    assert "potstill  " in run(potstill, "version", "--verbose", cwd=tmp_path)
    run(potstill, "demo", "--steps", 1, "--output_dir", "d", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (tmp_path / "d" / "student" / "model.safetensors").is_file()
    assert "Filling the blank" in (tmp_path / "d" / "report.html").read_text()
