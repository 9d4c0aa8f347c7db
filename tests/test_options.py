"""How options are made from signatures and dataclasses, and filled from flags and recipes."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import TrainingArguments

from potstill.arguments import recipe_values
from potstill.cli import VERBS
from potstill.errors import PotstillError
from potstill.evaluation.evaluate_arguments import EvaluateArguments
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.processes import launched
from potstill.recipe import DistillationArguments, PretrainingArguments
from potstill.recipe_file import read_recipe
from potstill.signatures import Positional, UsageError, _documented_arguments, call


@pytest.fixture
def parsed(tmp_path: Path) -> Callable[..., DistillationArguments]:
    """What a command line, and a recipe given as text, make of `distill`'s options."""

    def parse(*flags: str, recipe: str | None = None) -> DistillationArguments:
        def verb(args: DistillationArguments) -> DistillationArguments:
            """Do nothing."""
            return args

        argv = ["--output_dir", str(tmp_path), "--use_cpu", "--corpus", "c", *flags]
        argv += [] if "teacher" in (recipe or "") else ["--teacher", "t"]
        if recipe is not None:
            (tmp_path / "recipe.yaml").write_text(recipe)
            argv += ["--config", str(tmp_path / "recipe.yaml")]
        # Called by its annotations, which this file keeps as objects.
        return call(verb, "potstill test", argv)

    return parse


def test_defaults_are_distilberts(parsed: Callable[..., DistillationArguments]) -> None:
    args = parsed()
    assert (args.alpha_ce, args.alpha_mlm, args.alpha_cos, args.temperature) == (5.0, 2.0, 1.0, 2.0)
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (5e-4, 0.9, 0.98, 1e-6)
    assert (args.weight_decay, args.max_grad_norm, args.warmup_steps, args.num_train_epochs) == (0.0, 5.0, 0.05, 3)
    assert (args.mlm_probability, args.mlm_smoothing, args.masking) == (0.15, 0.7, "frequency")
    assert (args.layers, args.soft_targets, args.initialise, args.fold_token_types) == (
        None,
        "all",
        "teacher",
        True,
    )
    assert args.lr_scheduler_type == "linear"


def test_flags_overrule_the_recipe(parsed: Callable[..., DistillationArguments]) -> None:
    recipe = "alpha_ce: 1.5\nalpha_mlm: 0.25\nlearning_rate: 5e-5\nfold_token_types: false\n"
    args = parsed("--alpha_ce", "7", "--learning_rate=1e-3", recipe=recipe)
    assert (args.alpha_ce, args.alpha_mlm, args.learning_rate, args.fold_token_types) == (7.0, 0.25, 1e-3, False)
    assert parsed("--fold_token_types", recipe=recipe).fold_token_types is True


@pytest.mark.parametrize("written", ["5e-4", "5.0e-4", "0.0005", "5E-4", "'5e-4'"])
def test_scientific_notation(parsed: Callable[..., DistillationArguments], written: str) -> None:
    assert parsed(recipe=f"adam_epsilon: {written}").adam_epsilon == 5e-4


@pytest.mark.parametrize(
    ("flags", "recipe", "expected"),
    [
        (["--bf16"], "{}", True),
        (["--bf16"], "bf16: false", True),
        (["--bf16", "true"], "{}", True),
        (["--bf16", "false"], "bf16: true", False),
        (["--bf16=False"], "bf16: yes", False),
        ([], "bf16: yes", True),
        ([], "bf16: false", False),
        ([], "{}", False),
    ],
)
def test_booleans(
    parsed: Callable[..., DistillationArguments],
    flags: list[str],
    recipe: str,
    expected: bool,
) -> None:
    assert parsed(*flags, recipe=recipe).bf16 is expected


@pytest.mark.parametrize(("flags", "value"), [([], None), (["--sure"], True), (["--sure", "false"], False)])
def test_a_boolean_that_may_be_left_open(flags: list[str], value: bool | None) -> None:
    def verb(sure: bool | None = None) -> bool | None:
        """Do nothing.

        Args:
            sure: whether it is.
        """
        return sure

    assert call(verb, "potstill test", flags) is value


def test_switching_off_what_is_on(parsed: Callable[..., DistillationArguments]) -> None:
    assert parsed().eval_on_start is True
    assert parsed("--no_eval_on_start").eval_on_start is False
    assert parsed("--eval_on_start", "false").eval_on_start is False
    assert parsed(recipe="eval_on_start: false").eval_on_start is False


@pytest.mark.parametrize(
    ("recipe", "name", "expected"),
    [
        ("layers: [0, 2, 4]", "layers", "0,2,4"),
        ("layers: 0,2,4", "layers", "0,2,4"),
        ("report_to: [tensorboard]", "report_to", ["tensorboard"]),
        ("report_to: none", "report_to", []),
        ("lr_scheduler_kwargs: {min_lr: 1.0e-5}", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
        ("lr_scheduler_kwargs: '{\"min_lr\": 1e-5}'", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
        ("max_train_minutes: null", "max_train_minutes", None),
        ("losses: null", "losses", None),
        ("losses: {masked_lm: 2}", "losses", {"masked_lm": 2}),
        ("losses:\n  hidden_mse:\n    layers: {0: 1}\n", "losses", {"hidden_mse": {"layers": {"0": 1}}}),
        ("losses: '{masked_lm: 2}'", "losses", {"masked_lm": 2}),
        ("max_train_minutes: 2", "max_train_minutes", 2.0),
        ("teacher: 2024", "teacher", "2024"),
        ("teacher: -model", "teacher", "-model"),
    ],
)
def test_values_in_a_recipe(
    parsed: Callable[..., DistillationArguments], recipe: str, name: str, expected: object
) -> None:
    assert getattr(parsed(recipe=recipe), name) == expected


@pytest.mark.parametrize("word", ["no", "steps", "epoch"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_words_that_yaml_takes_for_truth_values(
    parsed: Callable[..., DistillationArguments], word: str, quote: str
) -> None:
    args = parsed(recipe=f"eval_strategy: {quote}{word}{quote}\nsave_strategy: {word}\nlogging_strategy: {word}\n")
    assert (args.eval_strategy, args.save_strategy, args.logging_strategy) == (word, word, word)


WORDS = ["no", "NO", "on", "off", "yes", "y", "1e5", "1.10", "0123", "0x1F", "1_000", "12:30", "2026-01-01", ".inf"]
WORDS += ["2026-01-01 10:00:00", "true", "False", "=", "+1", "5e-4"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("option", ["run_name", "teacher", "layers", "output_dir"])
def test_a_word_is_read_as_it_is_written(
    parsed: Callable[..., DistillationArguments], option: str, word: str, tmp_path: Path
) -> None:
    if option == "output_dir":  # which the command line of these tests gives, and so overrules
        assert read_recipe_text(tmp_path, f"output_dir: {word}\n") == {"output_dir": word}
    else:
        assert getattr(parsed(recipe=f"{option}: {word}"), option) == word


def read_recipe_text(folder: Path, text: str) -> dict[str, object]:
    (folder / "words.yaml").write_text(text, encoding="utf-8")
    return dict(read_recipe(folder / "words.yaml"))


@pytest.mark.parametrize("null", ["", "~", "null", "Null", "# a comment"])
def test_nothing_is_the_default(parsed: Callable[..., DistillationArguments], null: str) -> None:
    assert parsed(recipe=f"run_name: {null}\nseed: 7").run_name is None


@pytest.mark.parametrize("quoted", ["'null'", '"~"', "''"])
def test_quotes_make_a_word_of_nothing(parsed: Callable[..., DistillationArguments], quoted: str) -> None:
    assert parsed(recipe=f"run_name: {quoted}").run_name == quoted.strip("'\"")


@pytest.mark.parametrize(
    ("word", "expected"), [("on", True), ("Yes", True), ("TRUE", True), ("1", True), ("off", False), ("No", False)]
)
def test_switches(parsed: Callable[..., DistillationArguments], word: str, expected: bool) -> None:
    assert parsed(recipe=f"bf16: {word}").bf16 is expected
    assert parsed(recipe=f"resume_from_checkpoint: {word}").resume_from_checkpoint in (str(expected).lower(), word)


def test_merged_lines_are_overruled(tmp_path: Path) -> None:
    text = "<<: {seed: 1, layers: no}\nseed: 2\naccelerator_config: {split_batches: yes, even: 5.0e-1}\n"
    assert read_recipe_text(tmp_path, text) == {
        "layers": "no",
        "seed": "2",
        "accelerator_config": '{"split_batches": true, "even": 0.5}',
    }
    assert read_recipe_text(tmp_path, "\ufeffseed: 1") == {"seed": "1"}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \x00", b"seed: \xe9"])
def test_a_recipe_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(PotstillError, match=r"The recipe .*recipe.yaml cannot be read: ") as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_options_are_not_abbreviated(parsed: Callable[..., DistillationArguments]) -> None:
    with pytest.raises(UsageError, match="There is no option --learning; the nearest is --learning_rate"):
        parsed("--learning", "1")


def test_every_trainer_argument_is_an_option(parsed: Callable[..., DistillationArguments]) -> None:
    args = parsed("--lr_scheduler_type", "cosine", "--optim", "adamw_torch", "--save_strategy", "epoch", "--seed", "3")
    assert (args.lr_scheduler_type, args.optim, args.save_strategy, args.seed) == ("cosine", "adamw_torch", "epoch", 3)
    for recipe in (DistillationArguments, PretrainingArguments):
        inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
        assert inherited <= {f.name for f in dataclasses.fields(recipe)}


@pytest.mark.parametrize("verb", ["prepare", "demo", "compare"])
def test_every_parameter_has_a_help_text(verb: str) -> None:
    module, _, name = VERBS[verb][0].partition(":")
    function = getattr(importlib.import_module(module), name)
    helps = _documented_arguments(function)
    assert helps.keys() == inspect.signature(function).parameters.keys()
    assert all(len(text) > 10 and text.endswith(".") for text in helps.values())


@pytest.mark.parametrize("recipe", [DistillationArguments, PretrainingArguments, FinetuneArguments, EvaluateArguments])
def test_every_option_of_a_recipe_has_a_help_text(recipe: type) -> None:
    for field in dataclasses.fields(recipe):
        if field.init:
            assert field.metadata.get("help"), field.name


def test_signatures_become_options() -> None:
    def verb(
        text: list[str],
        fraction: float = 0.5,
        kind: Literal["a", "b"] = "a",
        limit: int | None = None,
        on: bool = False,
    ) -> dict[str, Any]:
        """Do something.

        Args:
            text: Files, 100 % of them.
            fraction: A share, which is
                explained on two lines.
            kind: Which.
            limit: How many.
            on: Whether.
        """
        return locals()

    assert _documented_arguments(verb)["fraction"] == "A share, which is explained on two lines."
    expected = {"text": ["x", "y"], "fraction": 0.5, "kind": "a", "limit": None, "on": False}
    assert call(verb, "p", ["--text", "x", "y"]) == expected
    given = call(verb, "p", ["--text", "x", "--fraction", "1e-1", "--kind", "b", "--limit", "3", "--on"])
    assert given == {"text": ["x"], "fraction": 0.1, "kind": "b", "limit": 3, "on": True}
    with pytest.raises(UsageError, match="--text"):
        call(verb, "p", [])
    with pytest.raises(UsageError, match="invalid choice: 'c'"):
        call(verb, "p", ["--text", "x", "--kind", "c"])


def test_a_word_without_a_name(tmp_path: Path) -> None:
    def verb(source: Positional, limit: int = 3, kind: str | None = None) -> dict[str, Any]:
        """Do something."""
        return locals()

    for argv in (
        ["x", "--limit", "5"],
        ["--limit", "5", "x"],
        ["--limit=5", "--source", "x"],
        ["--source=x", "--limit=5"],
    ):
        assert call(verb, "p", argv) == {"source": "x", "limit": 5, "kind": None}, argv
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: y\nlimit: 5\n")
    assert call(verb, "p", ["--config", str(recipe)])["source"] == "y"
    assert call(verb, "p", ["x", "--config", str(recipe)]) == {"source": "x", "limit": 5, "kind": None}
    with pytest.raises(UsageError, match="--source is missing"):
        call(verb, "p", ["--limit", "5"])
    with pytest.raises(UsageError, match="There is no option for z"):
        call(verb, "p", ["x", "z"])


def test_recipe_values_are_what_reruns(tmp_path: Path) -> None:
    args = DistillationArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        teacher="t",
        corpus="c",
        optim="sgd",
        lr_scheduler_type="cosine",
        resume_from_checkpoint="x",
        overwrite_output_dir=True,
    )
    values = recipe_values(args)
    assert values["optim"] == "sgd"
    assert values["lr_scheduler_type"] == "cosine"
    assert values["alpha_ce"] == 5.0
    assert not {"output_dir", "resume_from_checkpoint", "overwrite_output_dir", "logging_dir"} & values.keys()
    rerun = DistillationArguments(output_dir=str(tmp_path), **values)
    assert recipe_values(rerun) == values
    assert "weight_decay" not in values


def test_one_process_runs_a_recipe_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("gloo", "nccl"):
        args = DistillationArguments(output_dir=str(tmp_path), use_cpu=True, ddp_backend=backend)
        assert args.world_size == 1
        assert recipe_values(args)["ddp_backend"] == backend  # several may run it again
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()


def test_no_folder_of_the_library_s_choice() -> None:
    with pytest.raises(PotstillError, match="--output_dir is missing"):
        DistillationArguments(teacher="t", corpus="c")
