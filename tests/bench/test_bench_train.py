"""The verb `bench train` from end to end, on a tiny shape."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from potstill.bench import flops
from potstill.bench.plain import PlainStep
from potstill.bench.train_arguments import BenchTrainArguments
from potstill.cli import main
from potstill.pages.report import report
from potstill.signatures import call
from potstill.training.part_clock import PARTS
from potstill.training.step import DistillationStep

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    # tests/test_recipes.py runs those of the hub, and stages are of finetune
    if not {"teacher", "stages"} & yaml.safe_load(path.read_text()).keys()
]

SHAPE = ["--hidden_size", "32", "--num_attention_heads", "2", "--teacher_layers", "2", "--vocab_size", "200"]
QUICK = ["--block_size", "16", "--bench_steps", "3", "--bench_warmup", "2", "--use_cpu"]
EAGER = ["--bf16", "false", "--torch_compile", "false", "--dataloader_num_workers", "0"]
BATCH = ["--per_device_train_batch_size", "2"]


@pytest.fixture(autouse=True)
def _small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flops.MATRIX_SIZE, "cpu", 64)


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files go to a folder of their own, which must be empty in the end, as must the working directory."""
    folder, here = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("here")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(here)
    yield
    assert list(folder.iterdir()) == []
    assert list(here.iterdir()) == []


@pytest.fixture
def bench(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, signals_restored: None, no_hub: None, undisturbed_clock: None
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Run the verb on a tiny shape; return what it wrote and what it printed."""

    def run(*options: object) -> tuple[dict[str, Any], str]:
        file = tmp_path / "bench.json"
        status = main(["bench", "train", *SHAPE, *QUICK, *BATCH, "--json", str(file), *map(str, options)])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(file.read_text()), printed.out

    return run


def test_distillation(bench: Callable[..., tuple[dict[str, Any], str]]) -> None:
    measured, printed = bench()
    speed = measured["speed"]
    assert measured["measured_steps"] == 3
    assert measured["model"]["model_type"] == "distilbert"
    assert (measured["model"]["num_hidden_layers"], measured["teacher"]["num_hidden_layers"]) == (1, 2)
    assert (measured["block_size"], measured["labelled_per_block"], speed["batch_size"]) == (16, 2, 2)
    assert speed["tokens_per_second"] == pytest.approx(2 * 16 / speed["ms_per_step"] * 1000)
    assert speed["ms_per_micro_batch"] == speed["ms_per_step"]
    assert tuple(speed["ms_per_step_by_part"]) == PARTS
    assert all(milliseconds > 0 for milliseconds in speed["ms_per_step_by_part"].values())
    assert sum(speed["ms_per_step_by_part"].values()) == pytest.approx(speed["ms_per_step"], rel=0.05)
    counts = measured["flops_per_token"]
    assert measured["model_flops_per_second"] == pytest.approx(counts["step"] * speed["tokens_per_second"])
    rate = measured["matrix_product_flops_per_second"]
    assert measured["utilisation"] == pytest.approx(measured["model_flops_per_second"] / rate)
    assert speed["peak_memory_bytes"] > 2**20
    assert measured["seconds_to_first_step"] > 0
    assert measured["versions"].keys() == {"potstill", "torch", "transformers"}
    assert measured["baseline"] is None
    assert f"{speed['tokens_per_second']:,.0f}" in printed
    assert "plain" not in printed
    assert "float32, eager" in printed


def test_baseline(bench: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path) -> None:
    measured, printed = bench(
        "--baseline", "--baseline_batch_size", 1, "--gradient_accumulation_steps", 2, "--bench_steps", 6
    )
    ours, plain = measured["speed"], measured["baseline"]
    assert measured["measured_steps"] == 10  # five rounds of two
    assert len(ours["tokens_per_second_by_round"]) == len(plain["tokens_per_second_by_round"]) == 5
    assert (ours["batch_size"], plain["batch_size"]) == (2, 1)
    assert plain["tokens_per_second"] == pytest.approx(2 * 16 / plain["ms_per_step"] * 1000)
    assert plain["ms_per_micro_batch"] == plain["ms_per_step"] / 2
    assert all(milliseconds > 0 for milliseconds in plain["ms_per_step_by_part"].values())
    assert sum(plain["ms_per_step_by_part"].values()) == pytest.approx(plain["ms_per_step"], rel=0.05)
    assert re.search(rf"potstill ÷ plain: {measured['ratio_to_baseline']:.2f} ×", printed)
    page = report(str(tmp_path / "bench.json"), output=str(tmp_path / "page.html")).read_text()
    assert f"<b>{ours['tokens_per_second']:,.0f} tokens/s</b>" in page
    assert f"<b>{plain['tokens_per_second']:,.0f} tokens/s</b>" in page


def test_baseline_starts_from_the_same_weights(
    bench: Callable[..., tuple[dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[type, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for kind in (DistillationStep, PlainStep):

        def forward(self: DistillationStep, *batch: Tensor, run: Any = kind.forward) -> dict[str, Tensor]:
            models = (self.student, self.teacher)
            copies = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
            first.setdefault(type(self), (copies[0], copies[1]))
            return run(self, *batch)

        monkeypatch.setattr(kind, "forward", forward)
    bench("--baseline")
    ours, plain = first[DistillationStep], first[PlainStep]
    for mine, other in zip(ours, plain, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in other)


def test_pretraining(bench: Callable[..., tuple[dict[str, Any], str]]) -> None:
    measured, printed = bench("--pretrain", "--baseline")
    assert measured["teacher"] is None
    assert (measured["model"]["model_type"], measured["model"]["num_hidden_layers"]) == ("bert", 2)
    assert measured["objective"] == {"masked_lm": {"weight": 1.0}}
    assert "masked_lm weight 1.0\n" in printed
    for speed in (measured["speed"], measured["baseline"]):
        assert speed["ms_per_step_by_part"]["teacher"] == 0
    assert measured["flops_per_token"]["teacher_forward"] == 0
    assert "no teacher" in printed
    assert bench("--pretrain", "--num_hidden_layers", 3)[0]["model"]["num_hidden_layers"] == 3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe(bench: Callable[..., tuple[dict[str, Any], str]], recipe: Path) -> None:
    pretrain = ["--pretrain"] if recipe.stem.startswith("pretrain") else []
    measured, printed = bench("--config", recipe, *EAGER, "--bench_accumulation", 2, *pretrain, "--teacher_layers", 12)
    accumulated = yaml.safe_load(recipe.read_text()).get("gradient_accumulation_steps", 1)
    assert measured["gradient_accumulation_steps"] == min(accumulated, 2)
    assert (f"(the recipe has {accumulated})" in printed) == (accumulated > 2)
    assert (measured["teacher"] is None) == (recipe.stem in ("no-teacher", "pretrain-tiny"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_keep_what_matters(recipe: Path) -> None:
    def verb(args: BenchTrainArguments) -> BenchTrainArguments:
        """Do nothing."""
        return args

    pretrain = ["--pretrain"] if recipe.stem.startswith("pretrain") else []
    args = call(verb, "potstill bench train", ["--config", str(recipe), "--use_cpu", *pretrain])
    values = yaml.safe_load(recipe.read_text())
    assert args.masking == values.get("masking", "uniform" if pretrain else "frequency")
    assert args.per_device_train_batch_size == values.get("per_device_train_batch_size", 32)
    assert (args.torch_compile, args.bf16) == (values.get("torch_compile", False), values.get("bf16", False))
    assert (args.max_steps, args.max_train_minutes, args.report_to) == (25, None, [])
    assert args.eval_strategy == args.save_strategy == args.logging_strategy == "no"
    assert args.gradient_accumulation_steps == min(values.get("gradient_accumulation_steps", 1), 8)


def test_a_teacher_and_a_corpus(
    bench: Callable[..., tuple[dict[str, Any], str]], teacher_folder: Path, corpus_folder: Path
) -> None:
    measured, _ = bench("--teacher", teacher_folder, "--corpus", corpus_folder, "--soft_targets", "masked", "--bf16")
    assert measured["teacher"]["num_hidden_layers"] == 4
    assert measured["dtype"] == "bfloat16"
    assert bench("--teacher", teacher_folder)[0]["teacher"]["num_hidden_layers"] == 4
    vocabulary = measured["teacher"]["vocab_size"]
    assert bench("--corpus", corpus_folder)[0]["teacher"]["vocab_size"] == vocabulary != 200


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--log-dir={tmp_path / 'logs'}"]  # a temporary folder of the launcher's own otherwise
    command += ["-m", "potstill", "bench", "train", *SHAPE, *QUICK, *BATCH, "--baseline"]
    command += ["--gradient_accumulation_steps", "2", "--bench_warmup", "8", "--json", str(tmp_path / "bench.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": tempfile.gettempdir()}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("tokens/s") == 1
    measured = json.loads((tmp_path / "bench.json").read_text())
    assert measured["processes"] == 2
    for speed in (measured["speed"], measured["baseline"]):
        assert speed["tokens_per_second"] == pytest.approx(2 * 2 * 2 * 16 / speed["ms_per_step"] * 1000)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--bench_steps", "0"], "--bench_steps is 0: it must be above 0"),
        (["--bench_warmup", "0"], "--bench_warmup is 0"),
        (["--bench_accumulation", "0"], "--bench_accumulation is 0"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps is 0"),
        (["--baseline_batch_size", "0"], "--baseline_batch_size is 0"),
        (["--block_size", "2"], "--block_size is 2"),
        (["--vocab_size", "5"], "give --vocab_size"),
        (["--hidden_size", "33"], "is not a multiple of"),
        (["--teacher_layers", "0"], "--teacher_layers is 0"),
        (["--num_hidden_layers", "3"], "cannot fill 3 student layers"),
        (["--alpha_ce", "-1"], "--alpha_ce is -1.0"),
        (["--teacher", "/nowhere/teacher"], "/nowhere/teacher"),
        (["--teacher", "potstill-nobody/no-such-teacher"], "potstill-nobody/no-such-teacher"),
        (["--corpus", "/nowhere/blocks"], "is not a prepared corpus"),
        (["--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json"),
        (["--pretrain", "--teacher", "x"], "is not used with --pretrain"),
        (["--model", "x"], "--model is 'x'"),
    ],
)
@pytest.mark.usefixtures("signals_restored", "no_hub")
def test_bad_input(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *SHAPE, *QUICK, *BATCH, *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("potstill bench train: ")
    assert told in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(("step", "told"), [(DistillationStep, "per_device_train"), (PlainStep, "baseline")])
@pytest.mark.usefixtures("signals_restored")
def test_no_room_in_memory(
    step: type, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "forward", lambda self, *batch: torch.empty(2**58))
    assert main(["bench", "train", *SHAPE, *QUICK, *BATCH, "--baseline"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "does not fit into memory" in last
    assert f"--{told}_batch_size" in last
    assert "Traceback" not in last


def test_every_option_has_a_help_text() -> None:
    for field in fields(BenchTrainArguments):
        if field.init:
            assert field.metadata.get("help"), field.name


@pytest.mark.usefixtures("signals_restored")
def test_the_second_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert capsys.readouterr().err == "potstill: 'bench' needs a second word: bench train, bench inference.\n"
    assert main(["bench", "--bench_steps", "3"]) == 2
    assert capsys.readouterr().err == "potstill: 'bench' needs a second word: bench train, bench inference.\n"
    assert main(["bench", "foo"]) == 2
    assert capsys.readouterr().err == "potstill: there is no verb 'bench foo'; there is bench train, bench inference.\n"
    assert main(["bench", "--help"]) == 0
    assert capsys.readouterr().out.startswith("potstill bench train ")
    assert main(["bench", "train", "--help"]) == 0
    assert "usage: potstill bench train" in capsys.readouterr().out
