"""The verb `bench inference` from end to end on tiny models, their forms in this process to save time."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from inference_samples import Local, called
from transformers import BertModel, BertTokenizer

from potstill.bench.inference import measure
from potstill.bench.inference.models import forms_of, read_models
from potstill.bench.inference.requests import evenly, read_requests, synthetic_requests
from potstill.bench.inference.turns import Ratio, TurnsProgress, take_turns, turns_of
from potstill.cli import main
from potstill.errors import PotstillError

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")
EAGER = ["--compiled", "false"]


@pytest.fixture
def bench(
    local: type[Local], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Run the verb; return what it wrote and what it printed."""
    monkeypatch.setattr(measure, "BATCHED_REQUESTS", 8)

    def run(*options: object) -> tuple[dict[str, Any], str]:
        file = tmp_path / "bench.json"
        status = main(["bench", "inference", *map(str, options), "--output", str(file)])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(file.read_text()), printed.out

    return run


@pytest.fixture(scope="module")
def stsb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    (folder / "STS-B").mkdir()
    rows = [f"{'bola ' * (number % 7 + 1)}\tdome . kil{'a ' * (number % 3)}\t{number % 6}" for number in range(60)]
    (folder / "STS-B" / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def classifier(make_classifier: Callable[..., Path]) -> Path:
    return make_classifier()


@pytest.fixture(scope="module")
def exported(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `export` writes one, for a model that says the mean of its tokens' ids for either label."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=1),
        helper.make_node("Concat", ["mean", "mean"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info(name, types.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    folder = tmp_path_factory.mktemp("exported")
    for file in classifier.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, folder)
    (folder / "onnx").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "onnx" / "model_quantized.onnx")
    summary = {"format": "onnx-int8", "task": "text-classification", "inputs": inputs, "max_length": 32}
    (folder / "potstill_export.json").write_text(json.dumps(summary | {"file": "onnx/model_quantized.onnx"}))
    return folder


def test_what_is_measured(
    bench: Callable[..., tuple[dict[str, Any], str]], classifier: Path, exported: Path, stsb: Path, tmp_path: Path
) -> None:
    models = ["--models", f"teacher={classifier}", f"int8={exported}", "--data", "stsb", "--task_data", stsb]
    measured, printed = bench(*models, *EAGER, "--batch_size", 1, 4, "--passes", 2)
    assert [(row["model"], row["form"]) for row in measured["rows"]] == [
        ("teacher", "PyTorch, eager"),
        ("int8", "ONNX Runtime int8"),
    ]
    assert (measured["requests"], measured["passes"], measured["turns"]) == (60, 2, 40)
    assert measured["data"] == "STS-B dev, 60 pairs"
    assert measured["versions"].keys() >= {"Python", "potstill", "torch", "transformers", "onnxruntime"}
    for row in measured["rows"]:
        ms = row["latency"]["milliseconds"]
        assert len(ms) == 120
        assert row["latency"]["median"] == pytest.approx(np.median(ms), abs=1e-3)
        assert row["latency"]["p90"] == pytest.approx(np.percentile(ms, 90), abs=1e-3)
        assert row["latency"]["p99"] == pytest.approx(np.percentile(ms, 99), abs=1e-3)
        assert row["latency"]["seconds_of_a_pass"] == pytest.approx(sum(ms) / 2000, rel=1e-3)
        assert row["tokenisation"] > 0
        assert [some["batch_size"] for some in row["throughput"]] == [1, 4]
        assert row["throughput"][0]["per_second"] == pytest.approx(120_000 / sum(ms), rel=1e-3)
        assert row["throughput"][1]["per_second"] > 0
        assert 0 < row["throughput"][1]["padding"] < 1
        assert row["bound"]["times"] == pytest.approx(row["latency"]["mean"] / row["bound"]["milliseconds"])
        assert row["flops"] > 0
        assert not row["new_head"]
    first, second = measured["rows"]
    assert first["ratio"] is None
    assert second["ratio"]["turns"] == 40
    assert second["ratio"]["low"] <= second["ratio"]["value"] <= second["ratio"]["high"]
    sums = [[sum(row["latency"]["milliseconds"][at : at + 3]) for at in range(0, 120, 3)] for row in (first, second)]
    assert second["ratio"]["value"] == pytest.approx(np.median(np.divide(*sums)), rel=1e-3)
    for length, flops in first["flops_by_length"].items():  # an export may compute less, by one layer at most
        assert 0.4 * flops < second["flops_by_length"][length] < flops
    assert first["parameters"] == second["parameters"]
    assert first["bytes_on_disk"] == (classifier / "model.safetensors").stat().st_size
    assert second["bytes_on_disk"] == (exported / "onnx" / "model_quantized.onnx").stat().st_size
    assert second["bound"]["weight_bytes"] < first["bound"]["weight_bytes"] / 2
    assert f"{second['latency']['median']:,.2f}" in printed
    assert f"{second['ratio']['low']:,.2f}–{second['ratio']['high']:,.2f}" in printed
    assert re.search(r"AVX-512 (yes|no)", printed) or "instruction sets" in printed
    assert "1 thread a request" in printed
    assert max(map(len, printed.splitlines()[5:])) <= 110


@pytest.mark.slow
def test_forms_take_turns_and_each_is_first_at_times(
    bench: Callable[..., tuple[dict[str, Any], str]], local: type[Local], classifier: Path
) -> None:
    bench("--models", *(f"{name}={classifier}" for name in "abc"), *EAGER, "--batch_size", 1, 2, "--max_requests", 60)
    runs = [(form[0], tuple(numbers)) for form, numbers in called(local.calls, "run")]
    assert "".join(form for form, _ in runs[:9]) == "abcbcacab"
    for start in range(0, len(runs), 3):  # all have run a turn before any runs the next
        assert len({numbers for _, numbers in runs[start : start + 3]}) == 1
    for name in "abc":
        assert [number for form, numbers in runs if form == name for number in numbers] == list(range(60))
    methods = [method for _, method, _ in local.calls]
    assert max(at for at, method in enumerate(methods) if method == "warm_up") < methods.index("run")
    assert methods.index("memory") < methods.index("batch")  # of which it would be, not of single requests


def test_a_turn_begins_with_requests_that_are_not_counted(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = opened(classifier)
    local.call("read", synthetic_requests(10, 32), None)
    ran: list[int] = []
    lengths = {id(batch): batch["input_ids"].shape[1] for batch in local.worker._singles}
    local.worker._runner.run = lambda batch: ran.append(lengths[id(batch)])  # type: ignore[method-assign]
    clock = SimpleNamespace(perf_counter=lambda: 0.06 * len(ran))  # a request takes so long
    monkeypatch.setattr("potstill.bench.inference.worker.time", clock)
    assert len(local.call("run", [1, 2])) == 2
    assert ran == [8, 16, 32, 8, 16, 32]


def opened(folder: Path) -> Local:
    (form,) = forms_of(read_models([("a", str(folder))], None)[0], compiled=False)
    local = Local(form, 1)
    local.call("open", form, 1)
    return local


def test_padding_changes_nothing_but_the_time(classifier: Path) -> None:
    local = opened(classifier)
    local.call("read", synthetic_requests(10, 32), None)
    runner, rows = local.worker._runner, local.worker._rows
    said: list[torch.Tensor] = []
    runner._model.register_forward_hook(lambda module, inputs, output: said.append(output.logits))  # type: ignore[attr-defined]
    for batch in ([rows[0]], [rows[2]], [rows[0], rows[2]]):
        runner.run(runner.prepare(batch))
    torch.testing.assert_close(said[2], torch.cat(said[:2]))
    assert rows[0]["input_ids"].shape[1] < rows[2]["input_ids"].shape[1]


def test_threads_are_those_asked_for(
    bench: Callable[..., tuple[dict[str, Any], str]], classifier: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    of_torch: list[int] = []
    of_onnx: list[int] = []
    session = onnxruntime.InferenceSession

    def open_session(file: Any, options: Any = None, **more: Any) -> Any:
        of_onnx.append(options.intra_op_num_threads)
        return session(file, options, **more)

    monkeypatch.setattr("potstill.bench.inference.inference_arguments.cores", lambda: 3)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(torch, "set_num_threads", of_torch.append)
    models = ["--models", f"a={classifier}", f"b={exported}", *EAGER]
    _, printed = bench(*models, "--threads", 3, "--max_requests", 4, "--batch_size", 1)
    assert set(of_onnx) == {3}  # the model, and the product that bounds it
    assert of_torch.count(3) >= 4  # for the limits twice, and for each form
    assert "3 threads a request" in printed


def test_a_slow_machine_slows_all(bench: Callable[..., tuple[dict[str, Any], str]]) -> None:
    clock = np.linspace(1, 5, 40)  # it gets five times as slow on the way
    seconds = take_turns(range(40), 2, lambda form, turn: [clock[turn] * (1 + form)], TurnsProgress("x"))
    first, second = ([sum(turn) for turn in form] for form in seconds)
    ratio = Ratio.of(second, first)
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2)


def test_turns() -> None:
    assert turns_of(3, 1) == [[0], [1], [2]]
    assert turns_of(45, 1)[:2] == [[0, 1], [2, 3]]
    assert [len(turn) for turn in turns_of(205, 1)] == [10] * 20 + [5]
    assert turns_of(20, 3) == turns_of(20, 1) * 3
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 9) == [0, 1, 2]


def test_random_tokens_are_said_to_be(
    bench: Callable[..., tuple[dict[str, Any], str]], classifier: Path, make_classifier: Callable[..., Path]
) -> None:
    short = make_classifier(max_position_embeddings=16)
    measured, printed = bench(
        "--models", f"a={classifier}", f"b={short}", *EAGER, "--batch_size", 2, "--max_requests", 10
    )
    assert "no data: 10 synthetic requests of 8, 16 random tokens in turns" in printed
    assert measured["rows"][0]["lengths"]["longest"] == 16
    assert measured["rows"][0]["tokenisation"] is None
    assert Counter(measured["rows"][0]["flops_by_length"]).keys() == {"8", "16"}


def test_a_file_of_text(
    bench: Callable[..., tuple[dict[str, Any], str]], local: type[Local], teacher_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "requests.txt"
    text.write_text("bola dome\n\nkila luma\tsora tel\n" * 2)
    measured, printed = bench("--models", f"teacher={teacher_folder}", *EAGER, "--data", text, "--batch_size", 1)
    assert "requests.txt, 4 requests" in printed
    assert measured["rows"][0]["task"] == "fill-mask"
    ((_, requests),) = called(local.calls, "read")
    assert requests.texts == (("bola dome", None), ("kila luma", "sora tel")) * 2
    assert requests.places == ("line 1", "line 3", "line 4", "line 6")
    assert bench("--models", f"t={teacher_folder}", *EAGER, "--data", text, "--batch_size", 1, "--max_length", 3)[0][
        "rows"
    ][0]["lengths"] == {"shortest": 3, "p5": 3, "median": 3, "p95": 3, "longest": 3, "mean": 3}


def test_heads_for_sts_b(
    bench: Callable[..., tuple[dict[str, Any], str]], classifier: Path, teacher_folder: Path, stsb: Path
) -> None:
    data = ["--data", "stsb", "--task_data", stsb, "--max_requests", 4, "--batch_size", 1, *EAGER]
    measured, printed = bench("--models", f"mlm={teacher_folder}", f"own={classifier}", *data)
    mlm, own = measured["rows"]
    assert (mlm["new_head"], own["new_head"]) == (True, False)
    assert mlm["task"] == own["task"] == "text-classification"
    assert "with random weights, which changes the scores but not the time: mlm." in " ".join(printed.split())
    # A pooler and as many labels as the other model has.
    size = 32
    assert mlm["parameters"] - mlm["encoder_parameters"] == 2 * size + 2
    assert mlm["bytes_on_disk"] == 4 * mlm["parameters"]
    assert measured["data"] == "STS-B dev, 4 of 60 pairs"


def test_compiled_is_for_any_length(
    bench: Callable[..., tuple[dict[str, Any], str]], classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def compile(model: torch.nn.Module, *, dynamic: bool) -> torch.nn.Module:
        assert dynamic
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    measured, _ = bench("--models", f"a={classifier}", "--batch_size", 1, "--max_requests", 5)
    assert [row["form"] for row in measured["rows"]] == ["PyTorch, eager", "PyTorch, compiled"]
    assert len(compiled) == 1


def test_what_cannot_take_several_at_a_time(
    bench: Callable[..., tuple[dict[str, Any], str]], classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.bench.inference.runners import TorchRunner

    run = TorchRunner.run

    def only_one(self: TorchRunner, batch: Any) -> None:
        if len(batch["input_ids"]) > 1 and self is not runners[0]:
            raise ValueError("one at a time")
        run(self, batch)

    runners: list[TorchRunner] = []
    monkeypatch.setattr(TorchRunner, "run", only_one)
    init = TorchRunner.__init__
    monkeypatch.setattr(TorchRunner, "__init__", lambda self, form: (init(self, form), runners.append(self))[0])
    models = ["--models", f"a={classifier}", f"b={classifier}"]
    measured, printed = bench(*models, *EAGER, "--batch_size", 4, "--max_requests", 8)
    assert measured["rows"][0]["throughput"][0]["per_second"] > 0
    assert measured["rows"][1]["throughput"][0]["per_second"] is None
    assert "b, PyTorch, eager, cannot take 4 requests at a time: one at a time." in printed


def test_an_encoder_without_a_head_and_elmo_beside_it(
    bench: Callable[..., tuple[dict[str, Any], str]],
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import potstill.bench.inference.elmo as elmo

    monkeypatch.setattr(elmo, "CELLS", 8)
    monkeypatch.setattr(elmo, "PROJECTION", 4)
    BertModel.from_pretrained(teacher_folder).save_pretrained(tmp_path / "encoder")
    BertTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "encoder")
    (tmp_path / "text").write_text("bola dome kila .\nluma\n")
    models = ["--models", f"encoder={tmp_path / 'encoder'}", "--elmo", "--data", tmp_path / "text"]
    measured, printed = bench(*models, *EAGER, "--batch_size", 1, 2)
    encoder, shape = measured["rows"]
    assert (encoder["task"], shape["model"]) == ("feature-extraction", "ELMo-shaped")
    assert "ELMo-shaped, words: median 4.5" in printed
    assert shape["bytes_on_disk"] is None
    assert [some["per_second"] is None for some in shape["throughput"]] == [False, True]


def test_requests_are_read_from_all_over_the_data(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"line {number}\n" for number in range(100)))
    requests = read_requests(str(tmp_path / "text"), None, 4)
    assert [text for text, _ in requests.texts or ()] == ["line 0", "line 25", "line 50", "line 75"]
    (tmp_path / "latin").write_bytes("schön\n".encode("latin-1"))
    with pytest.raises(PotstillError, match="line 1, is not UTF-8"):
        read_requests(str(tmp_path / "latin"), None, None)
    assert len(requests) == 4
