"""The code of the README and of the walk through all verbs runs as written, but for the length of the training.

The pages name `bert-base-uncased`; a folder of that name in the working directory stands in for the hub.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from samples import written_text

from potstill.cli import VERBS, main

README = Path(__file__).parents[1] / "README.md"
TOUR = README.parent / "docs" / "how-to" / "tour.md"
SHORTER = {
    "distill": "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_eval_samples 2 "
    "--bf16 false --torch_compile false --use_cpu",
    "bench train": "--bench_steps 1 --bench_warmup 1 --per_device_train_batch_size 1 --bf16 false --use_cpu "
    "--torch_compile false --hidden_size 32 --num_attention_heads 2 --teacher_layers 2 --vocab_size 200 "
    "--block_size 16",
    "pretrain": "--max_steps 4 --per_device_train_batch_size 2 --max_eval_samples 2 --use_cpu",
    "prepare": "--num_proc 1",
    "finetune": "--max_steps 2 --use_cpu",
    "evaluate": "--seeds 2 --max_steps 2 --use_cpu",
    "compare": "",
    "export": "",
    "report": "",
    "bench inference": "--compiled false --max_requests 8 --batch_size 1 --threads 1",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, make_teacher: Callable[..., Path]) -> Path:
    folder = tmp_path
    shutil.copytree(make_teacher(max_position_embeddings=512), folder / "bert-base-uncased")
    shutil.copytree(README.parent / "recipes", folder / "recipes")
    shutil.copytree(folder / "bert-base-uncased", folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    for split in ("train", "test"):
        intents = [
            f'"{line[:40]}, please",{("card", "cash")[n % 2]}'
            for n, line in enumerate(written_text(20, seed=3).splitlines())
        ]
        (folder / f"{split}.csv").write_text("\n".join(["text,category", *intents]) + "\n")
    (folder / "src").symlink_to(README.parent / "src", target_is_directory=True)
    (folder / "text").mkdir()
    lines = "".join(json.dumps({"text": line}) + "\n" for line in written_text(1500, seed=1).splitlines())
    with pa.CompressedOutputStream(str(folder / "text" / "a.jsonl.zst"), "zstd") as file:
        file.write(lines.encode())
    rows = [f"{line[:40]}\t{number % 2}" for number, line in enumerate(written_text(200, seed=2).splitlines())]
    (folder / "glue" / "SST-2").mkdir(parents=True)
    for split, part in (("train", rows[:-4]), ("dev", rows[-4:])):
        (folder / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n")
    (folder / "glue" / "STS-B").mkdir()
    pairs = "".join(f"bola dome\tkila me .\t{number % 6}\n" for number in range(8))
    (folder / "glue" / "STS-B" / "dev.tsv").write_text(f"sentence1\tsentence2\tscore\n{pairs}")
    return folder


@pytest.mark.usefixtures("signals_restored")
@pytest.mark.parametrize(
    ("page", "written"), [(README, "small-onnx/onnx/model.onnx"), (TOUR, "four-layers/model.safetensors")]
)
def test_commands_and_code_run_in_order(
    page: Path, written: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("POTSTILL_CACHE", str(workplace / "cache"))
    for command in "".join(blocks(page, "bash")).splitlines():
        program, *words = shlex.split(command.replace("--vocab_size 8192", "--vocab_size 100"))
        assert program == "potstill"
        verb = next(verb for verb in SHORTER if words[: len(verb.split())] == verb.split())
        status = main([*words, *SHORTER[verb].split()])
        assert status == 0, f"{command}\n{capsys.readouterr().err}"

    for code in blocks(page, "python"):
        short = code.replace("max_steps=1000", "max_steps=2, per_device_train_batch_size=2, max_eval_samples=2")
        exec(compile(short, page.name, "exec"), {})
    assert (workplace / written).is_file()


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_set_up_comes_first_and_is_the_makefile_s() -> None:
    first = README.read_text(encoding="utf-8").split("```")[1]
    targets = re.findall(r"^make (\w+)", first, re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (README.parent / "Makefile").read_text()
    assert all(f"\n{target}: " in makefile for target in targets)


def test_what_is_linked_exists() -> None:
    for link in re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (README.parent / link).exists(), link


def test_the_walk_has_every_verb() -> None:
    commands = "".join(blocks(TOUR, "bash"))
    assert [verb for verb in VERBS if f"potstill {verb} " not in commands] == ["prune", "serve", "demo"]


def test_documents_have_no_figure_left_to_fill_in() -> None:
    for page in [README, *(README.parent / "docs").rglob("*.md")]:
        assert not re.findall(r"\b[A-Z]+_(?:TABLE|SECONDS)\b|TODO|TBD", page.read_text(encoding="utf-8")), page
