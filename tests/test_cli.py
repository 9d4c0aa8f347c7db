"""The command line on bad input: one sentence, a status that is not 0, and nothing half-written."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models
from transformers import BertModel, BertTokenizer

from potstill.cli import USAGE, VERBS, main
from potstill.corpus import Corpus
from potstill.option_table import TABLE

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--eval_strategy", "no"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a verb that must fail; return its one line, having made sure that nothing was written."""

    def run(verb: str, *options: object, status: int = 1) -> str:
        before = listing(tmp_path)
        capsys.readouterr()
        assert main([verb, *map(str, options)]) == status
        printed = capsys.readouterr()
        assert printed.err.startswith(f"potstill {verb}: ")
        assert printed.err.endswith("\n")
        assert printed.err.count("\n") == 1, printed.err
        assert "Traceback" not in printed.err
        assert printed.out == ""
        assert listing(tmp_path) == before
        return printed.err

    return run


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture
def job(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """The options of a distillation, some of them changed; None leaves one out."""

    def options(**changes: object) -> list[object]:
        values = {"teacher": teacher_folder, "corpus": corpus_folder, "output_dir": tmp_path / "student"} | changes
        flags = [part for name, value in values.items() if value is not None for part in (f"--{name}", value)]
        return [*QUICK, *flags]

    return options


def test_empty_corpus_folder(refused: Callable[..., str], job: Callable[..., list[object]], tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    message = refused("distill", *job(corpus=tmp_path / "blocks"))
    assert "is not a prepared corpus" in message
    assert "potstill prepare" in message


def test_corpus_of_another_tokenizer(
    refused: Callable[..., str], job: Callable[..., list[object]], teacher_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "teacher"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((teacher_folder / name).read_bytes())
    tokenizer = BertTokenizer.from_pretrained(teacher_folder)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    words[-1], words[-2] = words[-2], words[-1]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(other)
    message = refused("distill", *job(teacher=other))
    assert "was prepared with the tokenizer" in message
    assert f"--tokenizer {other}" in message


def test_language_model_options_for_a_teacher_without_a_head(
    refused: Callable[..., str], job: Callable[..., list[object]], teacher_folder: Path, tmp_path: Path
) -> None:
    BertModel.from_pretrained(teacher_folder).save_pretrained(tmp_path / "encoder")
    BertTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "encoder")
    message = refused("distill", *job(teacher=tmp_path / "encoder"), "--temperature", "3")
    assert "--temperature is for language models, but the teacher is distilled without a head" in message


def test_teacher_that_does_not_exist(
    refused: Callable[..., str], job: Callable[..., list[object]], tmp_path: Path
) -> None:
    assert "potstill-nobody/no-such-teacher" in refused("distill", *job(teacher="potstill-nobody/no-such-teacher"))
    assert "no-such-folder" in refused("distill", *job(teacher=tmp_path / "no-such-folder"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": "0,9"}, "teacher layer 9 does not exist: the teacher has 4 layers"),
        ({"layers": "0,1,2", "num_hidden_layers": 2}, "list exactly one for each"),
        ({"layers": "best"}, "'best' is neither a rule"),
        ({"num_hidden_layers": 7}, "cannot fill 7 student layers"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"alpha_ce": -1}, "--alpha_ce is -1.0"),
        ({"alpha_mlm": "nan"}, "--alpha_mlm is nan"),
        ({"alpha_ce": 0, "alpha_mlm": 0, "alpha_cos": 0}, "there is nothing to learn from"),
        ({"temperature": 0}, "--temperature is 0.0"),
        ({"losses": "{hidden_mze: 1}"}, "there is no loss 'hidden_mze'; did you mean hidden_mse?"),
        ({"losses": '{"hidden_mse": {"layer": {"0": 0}}}'}, "hidden_mse has no option 'layer'; did you mean layers?"),
        ({"losses": "{hidden_mse: {layers: {0: 4}}}"}, "layers of hidden_mse names layer 4 of the teacher"),
        ({"losses": "{hidden_mse: {layers: {2: 0}}}"}, "layers of hidden_mse names layer 2 of the student"),
        ({"losses": "{attention_relations: {teacher_layer: 4}}"}, "teacher_layer of attention_relations names layer 4"),
        (
            {"losses": "{attention_relations: {relation_heads: 5}}"},
            "the 5 relation heads of attention_relations do not",
        ),
        ({"losses": "{masked_lm: 0, soft_targets: {weight: 0}}"}, "no loss has a weight above 0"),
        ({"losses": ""}, "losses is {}: it must map names to weights"),
        ({"losses": "masked_lm"}, "losses is 'masked_lm': it must map names to weights"),
        ({"losses": "{masked_lm: 1"}, "--losses cannot be read"),
        ({"losses": "{masked_lm: 1}", "alpha_cos": 0}, "--losses and --alpha_cos are both given"),
        ({"losses": "{masked_lm: 1}", "temperature": 3}, "--losses and --temperature are both given"),
        ({"losses": "{masked_lm: 1}", "hidden_cosine": "masked"}, "--losses and --hidden_cosine are both given"),
        ({"alpha_cos": 0, "hidden_cosine": "masked"}, "--hidden_cosine is 'masked': it has no effect"),
        ({"masking": "uniform", "mlm_smoothing": 0.3}, "--mlm_smoothing is 0.3: it has no effect with --masking unif"),
        ({"narrow_by": "random"}, "--narrow_by is 'random': it has no effect, because nothing is narrower"),
        ({"layers": "first", "layers_seconds": 5}, "--layers_seconds is 5.0: it limits the time of --layers auto"),
        ({"teacher_mean": "logits"}, "--teacher_mean is 'logits': it has no effect with one teacher"),
        ({"soft_targets_share": 0.3}, "--soft_targets_share is 0.3: it belongs to --soft_targets sampled"),
        ({"hidden_cosine": "sampled"}, "--hidden_cosine is 'sampled': it saves no time with --soft_targets all"),
        ({"learning_rate": 0}, "--learning_rate is 0.0"),
        ({"mlm_probability": 1.5}, "--mlm_probability is 1.5"),
        ({"max_train_minutes": 0}, "--max_train_minutes is 0.0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0"),
        ({"gradient_accumulation_steps": 100}, "fewer than the 200 of one optimiser step"),
        ({"resume_from_checkpoint": "true"}, "there is no checkpoint in"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-3"}, "/nowhere/checkpoint-3 is not a folder"),
        ({"eval_strategy": "sometimes"}, "sometimes is not a valid IntervalStrategy"),
        ({"report_to": "telegraph"}, "--report_to telegraph does not work"),
        ({"num_train_epochs": 0, "max_steps": -1}, "--num_train_epochs is 0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_impossible_values(
    refused: Callable[..., str], job: Callable[..., list[object]], changes: dict[str, object], told: str
) -> None:
    assert told in refused("distill", *job(**changes))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--teecher", "x"], "There is no option --teecher; the nearest is --teacher; see `potstill distill --help`."),
        (["--Teacher=x"], "There is no option --Teacher; the nearest is --teacher"),
        (["--batch_size", "8"], "There is no option --batch_size; the nearest is --"),
        (["--quux"], "There is no option --quux; see"),
        (["-teacher", "x"], "There is no option -teacher; the nearest is --teacher"),
        (["word"], "There is no option for word"),
        (["--masking", "sometimes"], "invalid choice: 'sometimes'"),
        (["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
        (["--bf16", "perhaps"], "--bf16"),
        (["--max_steps"], "--max_steps: expected one argument"),
        (["--config"], "--config: expected one argument"),
        (["--config", "no-such-recipe.yaml"], "The recipe no-such-recipe.yaml cannot be read: No such file"),
    ],
)
def test_misuse(refused: Callable[..., str], job: Callable[..., list[object]], options: list[str], told: str) -> None:
    assert told in refused("distill", *job(), *options, status=2)


def test_misuse_is_told_before_anything_heavy_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and transformers take seconds, and a mistake in the command line should not."""
    if json.loads(TABLE.read_text())["transformers"] != transformers.__version__:
        pytest.skip("the table of options was written with another transformers")
    argv = ["distill", "--teecher", "x"], ["prepare"], ["export", "--help"], ["bench", "train", "--help-all"]
    code = f"import sys; from potstill.cli import main; print([main(words) for words in {argv!r}], file=sys.stderr)\n"
    code += "assert not {'torch', 'transformers', 'numpy', 'datasets'} & sys.modules.keys()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[-1] == "[2, 2, 0, 0]"


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        (["teacher"], "--teacher is missing"),
        (["corpus", "teacher"], "--corpus and --teacher are missing"),
        (["output_dir", "corpus", "teacher"], "--output_dir, --corpus and --teacher are missing"),
    ],
)
def test_missing_options(
    refused: Callable[..., str], job: Callable[..., list[object]], left_out: list[str], told: str
) -> None:
    assert told in refused("distill", *job(**dict.fromkeys(left_out)), status=2)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("learning_rat: 5e-4", "unknown option 'learning_rat'; did you mean learning_rate?"),
        ("quux_zork: 1", "unknown option 'quux_zork'."),
        ("learning_rate: fast", "--learning_rate: invalid float value: 'fast'"),
        ("bf16: perhaps", "--bf16"),
        ("max_steps: [1, 2]", "There is no option for 2"),
        ("- a\n- b", "must be lines of `option: value`"),
        ("", "must be lines of `option: value`"),
        ("a: [", "cannot be read: while parsing"),
        ("[" * 5000, "nested too deeply"),
        ("learning_rate: {a: 1}", "invalid float value"),
        ("layers: [[0, 2], 4]", "line 1: layers is a list of lists"),
        ("seed: 1\nlayers: 0,2\nseed: 2", "names seed twice"),
        ("? [a, b]\n: 1", "line 1, must be `option: value`"),
        ("accelerator_config: {a: 2026-01-01}", "accelerator_config holds a value that is no JSON"),
        ("losses: [masked_lm, soft_targets]", "it must map names to weights"),
        ("losses: {masked_lm: {weights: 1}}", "masked_lm has no option 'weights'; did you mean weight?"),
        ("temperature: 0", "--temperature is 0.0"),
    ],
)
def test_bad_recipes(
    refused: Callable[..., str], job: Callable[..., list[object]], tmp_path: Path, recipe: str, told: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    status = 1 if "temperature" in recipe or "losses" in recipe else 2
    assert told in refused("distill", *job(), "--config", tmp_path / "recipe.yaml", status=status)


def test_output_folder_with_something_in_it(
    refused: Callable[..., str],
    job: Callable[..., list[object]],
    tmp_path: Path,
    corpus_folder: Path,
) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years of work")
    assert "is not empty" in refused("distill", *job())
    assert "is not empty" in refused("pretrain", "--corpus", corpus_folder, "--output_dir", folder, *QUICK)
    assert "is a file" in refused("distill", *job(output_dir=folder / "thesis.tex"))
    assert "there is no checkpoint in" in refused("distill", *job(), "--resume_from_checkpoint", "true")

    assert main([*map(str, ["distill", *job()]), "--overwrite_output_dir"]) == 0
    assert (folder / "thesis.tex").read_text() == "ten years of work"
    assert (folder / "model.safetensors").exists()
    assert main([*map(str, ["distill", *job()]), "--resume_from_checkpoint", "true"]) == 0


def test_overwriting_waits_until_nothing_speaks_against_it(
    refused: Callable[..., str], job: Callable[..., list[object]]
) -> None:
    assert main([*map(str, ["distill", *job()])]) == 0
    for changes in ({"teacher": "/nowhere/teacher"}, {"layers": "0,9"}, {"gradient_accumulation_steps": 100}):
        refused("distill", *job(**changes), "--overwrite_output_dir")


def test_corpus_of_longer_blocks_than_the_teacher_reads(
    refused: Callable[..., str], job: Callable[..., list[object]], make_teacher: Callable[..., Path]
) -> None:
    message = refused("distill", *job(teacher=make_teacher(max_position_embeddings=8)))
    assert "reads at most 8 tokens" in message
    assert "--block_size" in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--grow", "3,2,4"], "depths must be above 0 and increase"),
        (["--grow", "0,4"], "depths must be above 0 and increase"),
        (["--grow", "2,x"], "--grow is '2,x': it must be numbers"),
        (["--grow", "1,2"], "--grow ends at 2 layers but --num_hidden_layers is 4"),
        (["--grow", "2,4", "--grow_at", "0.3,0.6"], "it needs 1 increasing shares"),
        (["--grow", "1,2,4", "--grow_at", "0.6,0.3"], "it needs 2 increasing shares"),
        (["--grow", "2,4", "--grow_at", "1.5"], "it needs 1 increasing shares"),
        (["--grow_at", "0.5"], "--grow_at"),
        (["--hidden_size", "33", "--num_attention_heads", "2"], "is not a multiple of"),
        (["--max_position_embeddings", "8"], "reads at most 8 tokens"),
        (["--tokenizer", "/nowhere/tokenizer"], "/nowhere/tokenizer"),
        (["--corpus", "/nowhere/blocks"], "is not a prepared corpus"),
        (["--hidden_size", "0"], "--hidden_size"),
        (["--num_hidden_layers", "0"], "--num_hidden_layers"),
        (["--dropout", "1.5"], "--dropout"),
    ],
)
def test_impossible_pretraining(
    refused: Callable[..., str], corpus_folder: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    sizes = ["--num_hidden_layers", "4", "--hidden_size", "32", "--num_attention_heads", "2"]
    where = ["--corpus", corpus_folder, "--output_dir", tmp_path / "model"]
    assert told in refused("pretrain", *where, *QUICK, *sizes, *options)


def test_prepare_without_text(refused: Callable[..., str], teacher_folder: Path, tmp_path: Path) -> None:
    where = ["--output_dir", tmp_path / "blocks", "--tokenizer", teacher_folder]
    (tmp_path / "empty").mkdir()
    refused("prepare", "--text", tmp_path / "empty", *where)
    refused("prepare", "--text", "/nowhere/at/all/text.txt", *where)
    assert "--text" in refused("prepare", *where, status=2)


def test_interrupted(
    job: Callable[..., list[object]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from potstill import DistillationTrainer

    compute_loss = DistillationTrainer.compute_loss

    def signalled(self: DistillationTrainer, *args: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", signalled)
    assert main([*map(str, ["distill", *job()])]) == 128 + signal.SIGTERM
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"resume with --resume_from_checkpoint {tmp_path / 'student' / 'checkpoint-1'}" in last


def test_the_closing_line_tells_what_was_written(
    job: Callable[..., list[object]],
    teacher_folder: Path,
    text_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = tmp_path / "blocks"
    options = ["--text", text_path, "--tokenizer", teacher_folder, "--output_dir", blocks, "--block_size", 16]
    assert main(["prepare", *map(str, options)]) == 0
    assert capsys.readouterr().out == f"{Corpus.open(blocks)}\n"
    assert main(["distill", *map(str, job())]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'student'}/\n"
    monkeypatch.setenv("RANK", "1")
    assert main(["prepare", *map(str, options), "--overwrite_output_dir"]) == 0
    assert capsys.readouterr().out == ""


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["help"]):
        assert main(argv) == 0
        assert capsys.readouterr().out.strip() == USAGE
    assert all(verb in USAGE for verb in VERBS)
    assert main(["version"]) == 0
    assert capsys.readouterr().out.count(".") >= 2
    assert main(["distil"]) == 2
    assert "there is no verb 'distil'; the verbs are prepare, distill" in capsys.readouterr().err


@pytest.fixture
def new_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], None]:
    """Make a function the verb `try`."""

    def add(function: Callable[..., object]) -> None:
        module = types.ModuleType("potstill_verb_of_a_test")
        module.verb = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(VERBS, "try", (f"{module.__name__}:verb", "of a test"))

    return add


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_character(
    new_verb: Callable[..., None], encoding: str, errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb() -> str:
        """Tell something."""
        print("läuft \udcff", file=sys.stderr)
        return "92.1 → 91.8 ≥ é"

    new_verb(verb)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(["try"]) == 0
    for stream in streams:
        stream.flush()
    shown = streams[0].buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    expected = "92.1 → 91.8 ≥ é\n".encode(encoding, "backslashreplace").decode(encoding)
    assert shown == expected
    assert "\\udcff" in streams[1].buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_a_result_that_cannot_be_printed(
    new_verb: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def verb() -> str:
        """Tell something."""
        return "a score"

    new_verb(verb)
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["try"]) == 1
    told = "potstill try: The verb is done, but its result cannot be printed: No space left on device.\n"
    assert capsys.readouterr().err == told


def test_a_panic_of_a_library_in_rust(new_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    whole = Tokenizer(models.WordLevel({"a": 0})).to_str()
    damaged = '"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"}'
    assert '"normalizer":null' in whole

    def verb() -> None:
        """Read a damaged table."""
        Tokenizer.from_str(whole.replace('"normalizer":null', damaged))

    new_verb(verb)
    status = main(["try"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 1
    assert "Traceback" not in last
    assert last.startswith("potstill try: a library failed on its input (")


def test_one_line_from_a_fresh_process(teacher_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "potstill", "distill", "--teacher", str(teacher_folder)]
    command += ["--corpus", str(tmp_path), "--output_dir", str(tmp_path / "student"), "--use_cpu"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith(f"potstill distill: {tmp_path} is not a prepared corpus")
    assert run.stderr.count("\n") == 1, run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["version", "--verbose"]])
def test_a_pipe_whose_reader_has_ended(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-m", "potstill", *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, "")
