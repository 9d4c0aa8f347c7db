"""A tiny teacher and a tiny corpus, made once for all tests that train."""

import gc
import os
import random
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from encoder_samples import save_encoder
from hubs import hub, network  # noqa: F401 (fixtures)
from hypothesis import HealthCheck, settings
from samples import BLOCK_SIZE, VOCABULARY, written_text
from terminals import terminal  # noqa: F401 (a fixture)
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from potstill.corpus import Corpus, prepare
from potstill.export.export import export
from potstill.sentences import MODES, Dense

# Every run of the suite tries the same examples, and a busy machine may take its time for them.
settings.register_profile("potstill", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("potstill")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


SEED = "POTSTILL_TEST_SEED"
"""Environment variable: the seed of a run, to repeat it. Without it each run has new random numbers."""


def pytest_configure() -> None:
    """Choose the seed of the run. The processes of pytest-xdist inherit it."""
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(10**6)))


def pytest_report_header() -> str:
    """Say how the random numbers of this run can be had again."""
    return f"random numbers: {SEED}={os.environ[SEED]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say it after failures too: with -q there is no header."""
    if exitstatus:
        terminalreporter.write_line(f"{pytest_report_header()} repeats them")


def _seed(name: str) -> None:
    seed = zlib.crc32(f"{os.environ[SEED]} {name}".encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """Make what tests share from the same random numbers, whichever of the tests needs it first."""
    if fixturedef.scope != "function":
        _seed(fixturedef.argname)


@pytest.fixture(autouse=True)
def _random_numbers(request: pytest.FixtureRequest) -> None:
    # They would otherwise depend on the tests that ran before in this process, so that a failure could not be repeated.
    _seed(request.node.nodeid)


@pytest.fixture(scope="module", autouse=True)
def _short_garbage_collections() -> None:
    # The Trainer collects garbage after each training. It would go through everything that was imported and collected
    # before, which takes longer than the training of a tiny model: what is alive now is left out from here on.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Several processes of tests share few cores, and on models this small threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _a_processor_without_sixteen_bits() -> Iterator[None]:
    # What a run prints would depend on the processor of the tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.training.compatibility.multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _ctrl_c_raises() -> Iterator[None]:
    # A suite started in the background inherits an ignored SIGINT, and Python then leaves it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def signals_restored() -> Iterator[None]:
    """Put the handler of SIGTERM back that the command line replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, model_max_length=32)


@pytest.fixture(scope="session")
def make_teacher(tiny_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a small BERT, every parameter of it random, with its tokenizer; options are those of its config."""

    def make(seed: int = 0, **options: object) -> Path:
        sizes = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = BertForMaskedLM(BertConfig(**(sizes | options)))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        folder = tmp_path_factory.mktemp("teacher") / "teacher"
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def teacher_folder(make_teacher: Callable[..., Path]) -> Path:
    """A BERT of 4 layers, 32 wide, with dropout, that reads up to 32 tokens."""
    return make_teacher()


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(written_text(45, seed=1), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus_folder(teacher_folder: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 16 tokens: five steps of 8 blocks to the epoch, and a rest."""
    folder = tmp_path_factory.mktemp("corpus") / "blocks"
    corpus = prepare(
        [str(text_path)], str(folder), str(teacher_folder), BLOCK_SIZE, validation_fraction=0.2, num_proc=1
    )
    assert len(corpus.train) // 8 == 5, len(corpus.train)
    assert len(corpus.train) % 8
    assert len(corpus.validation) >= 6, len(corpus.validation)
    return folder


@pytest.fixture
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus.open(corpus_folder)


@pytest.fixture(scope="session")
def pooled_encoder(tiny_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder with all poolings side by side, a Dense module and a prompt; embeddings have any length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dense = Dense(32 * len(MODES), 16, activation="Tanh")
    folder = tmp_path_factory.mktemp("encoder") / "pooled"
    return save_encoder(folder, tiny_tokenizer, MODES, [dense], normalize=False, prompts={"ask": "bola kir "})


@pytest.fixture(scope="session")
def exported_encoder(pooled_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder as ONNX."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    export(str(pooled_encoder), "onnx", str(folder))
    return folder
