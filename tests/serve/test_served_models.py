"""What is served is checked first: each wrong folder is told in one sentence, and nothing listens."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hostile import BROKEN, NAMES
from hypothesis import given
from hypothesis import strategies as st
from serve_samples import SMALLEST_ONNX, cached, write_export

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.serve.models import OTHER_FILES, ServedModel, check_pair
from potstill.serve.onnx_file import is_complete
from potstill.serve.server import PageServer

pytestmark = pytest.mark.usefixtures("signals_restored")


def test_what_the_page_is_told(tmp_path: Path) -> None:
    labels = {"id2label": {"1": "good", "0": "bad"}, "architectures": ["BertForSequenceClassification"]}
    model = ServedModel.open(str(write_export(tmp_path / "student", "onnx/model_quantized.onnx", **labels)), "--model")
    assert model.description("models/0/") == {
        "name": "student",
        "path": "models/0/",
        "file": "onnx/model_quantized.onnx",
        "bytes": len(SMALLEST_ONNX),
        "task": "text-classification",
        "precision": "int8",
        "layers": 3,
        "max_length": 128,
        "labels": ["bad", "good"],
        "multi_label": False,
        "threshold": None,
        "prompt": "",
    }


def test_layers_and_lengths_of_other_families(tmp_path: Path) -> None:
    distilbert = {
        "model_type": "distilbert",
        "architectures": ["DistilBertForQuestionAnswering"],
        "num_hidden_layers": 6,
    }
    folder = write_export(tmp_path / "a", **distilbert)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    model = ServedModel.open(str(folder), "--model")
    assert (model.layers, model.max_length, model.task, model.labels) == (6, 512, "question-answering", ())
    (folder / "potstill_export.json").write_text('{"max_length": 510}')  # as the export measured it
    assert ServedModel.open(str(folder), "--model").max_length == 510


def test_scores_have_no_labels(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    assert ServedModel.open(str(write_export(tmp_path / "a", **config)), "--model").labels == ()


def test_labels_of_which_several_may_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    several = head | {"problem_type": "multi_label_classification"}
    folder = write_export(tmp_path / "several", **several, threshold=0.3)
    found = ServedModel.open(str(folder), "--model").description("")
    assert (found["multi_label"], found["threshold"]) == (True, 0.3)
    # Other programs write none.
    assert ServedModel.open(str(write_export(tmp_path / "other", **several)), "--model").threshold == 0.5
    one = write_export(tmp_path / "one", **head, threshold=0.3)
    assert ServedModel.open(str(one), "--model").threshold is None
    message = said(capsys, "--model", str(folder), "--compare", str(one))
    assert f"{folder} gives a text any number of labels, {one} gives it one label." in message
    broken = write_export(tmp_path / "broken", **several, threshold="high")
    assert "config.json whose threshold is 'high': it must be between 0 and 1" in said(capsys, "--model", str(broken))


def said(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["serve", "--port", "0", *options]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1, output.err
    assert "Traceback" not in output.err
    return output.err


def test_folders_that_hold_no_model_for_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(write_export(tmp_path / "good"))
    assert "does not exist" in said(capsys, "--model", str(tmp_path / "none"))
    assert "is a file" in said(capsys, "--model", str(Path(good) / "config.json"))
    assert "holds no exported model" in said(capsys, "--model", str(tmp_path))
    assert "--compare" in said(capsys, "--model", good, "--compare", str(tmp_path))

    pytorch = tmp_path / "student"
    pytorch.mkdir()
    (pytorch / "config.json").write_text("{}")
    (pytorch / "model.safetensors").write_bytes(b"")
    assert f"export --model {pytorch} --format onnx --output_dir {pytorch}-onnx" in said(
        capsys, "--model", f"{pytorch}"
    )

    openvino = tmp_path / "openvino"
    openvino.mkdir()
    (openvino / "openvino_model.xml").write_text("")
    assert "is an export for OpenVINO" in said(capsys, "--model", str(openvino))

    tokens = write_export(tmp_path / "tokens", architectures=["BertForTokenClassification"])
    message = said(capsys, "--model", str(tokens))
    assert "is a BertForTokenClassification" in message
    assert "fill-mask, text-classification, question-answering and similarity by sentence encoders" in message

    headless = write_export(tmp_path / "headless", architectures=None)
    assert "is a model without a head" in said(capsys, "--model", str(headless))

    broken = write_export(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert f"{broken}/config.json is damaged: it is not JSON" in said(capsys, "--model", str(broken))
    (broken / "config.json").write_text('{"model_type": "made-up"}')
    assert "config.json that cannot be read" in said(capsys, "--model", str(broken))
    (broken / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in said(capsys, "--model", str(broken))

    split = write_export(tmp_path / "split")
    (split / "onnx" / "model.onnx.data").write_bytes(b"")
    assert "in a second file, model.onnx.data" in said(capsys, "--model", str(split))

    for length in (0, 5, len(SMALLEST_ONNX) - 1):
        (split / "onnx" / "model.onnx").write_bytes(SMALLEST_ONNX[:length])
        assert "is cut short" in said(capsys, "--model", str(split))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "onnx", "potstill_export.json"])
def test_a_link_out_of_the_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    folder = write_export(tmp_path / "student")
    (folder / "potstill_export.json").write_text('{"max_length": 64}')
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to("../elsewhere")
    message = said(capsys, "--model", str(folder))
    assert f"{folder} has a link that leads out of it" in message
    assert f"{file} is {tmp_path}/elsewhere" in message.replace("/model.onnx", "")


def test_only_links_within_a_cached_model_are_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cached(write_export(tmp_path / "student"), tmp_path / "hub" / "models--somebody--student")
    model = ServedModel.open(str(folder), "--model")
    assert (model.name, model.file) == ("somebody/student", "onnx/model.onnx")
    (folder / "onnx" / "model.onnx").resolve().rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", tmp_path / "hub" / "models--somebody--else" / "blobs" / "b0"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(SMALLEST_ONNX)
        (folder / "onnx" / "model.onnx").unlink()
        (folder / "onnx" / "model.onnx").symlink_to(target)
        message = said(capsys, "--model", str(folder))
        assert f"{folder} has a link that leads out of it" in message
        assert f"onnx/model.onnx is {target}" in message


def test_a_folder_that_only_looks_like_a_cached_model_may_have_no_links_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for repository in ("models", "snapshots", "my-models--somebody--student"):
        folder = cached(write_export(tmp_path / f"of-{repository}"), tmp_path / repository)
        assert f"{folder} has a link that leads out of it" in said(capsys, "--model", str(folder))


def test_two_models_must_do_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"architectures": ["BertForSequenceClassification"]}
    fill = write_export(tmp_path / "fill")
    two = write_export(tmp_path / "two", **head)
    three = write_export(tmp_path / "three", **head, id2label={"0": "a", "1": "b", "2": "c"})
    score = write_export(tmp_path / "score", **head, id2label={"0": "a"})
    message = said(capsys, "--model", str(fill), "--compare", str(two))
    assert message.endswith(
        f"different tasks: {fill} does fill-mask, {two} does text-classification. Give two of one task.\n"
    )
    assert "answers with 3 labels" in said(capsys, "--model", str(two), "--compare", str(three))
    assert "with a score" in said(capsys, "--model", str(two), "--compare", str(score))
    check_pair(*(ServedModel.open(str(folder), "--model") for folder in (fill, fill)))


def test_ports_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_export(tmp_path / "model"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"Port {port} is taken: give another with --port" in said(capsys, "--model", model, "--port", port)
    assert "between 0 and 65535" in said(capsys, "--model", model, "--port", "65536")


def test_a_real_model_is_whole_until_it_is_cut(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, numbers, ["n"]) for name in "xy")
    weights = helper.make_tensor("w", numbers, [40], [0.5] * 40)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "graph", [x], [y], [weights])
    model = helper.make_model(graph, doc_string="a sentence", producer_name="a test")
    helper.set_model_props(model, {"key": "value"})
    content = model.SerializeToString()
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    assert is_complete(file)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        whole = is_complete(file)
        if whole:  # what follows the operators may be missing: a cut there leaves a model
            onnx.load(file)
            assert length > content.index(b"graph") + 160


@given(st.binary(max_size=60))
def test_any_bytes_are_told_from_a_model(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "model.onnx"
    file.write_bytes(content)
    assert is_complete(file) in (True, False)
    file.write_bytes(SMALLEST_ONNX + b"\xff" + content)
    is_complete(file)


@pytest.mark.parametrize("name", [*OTHER_FILES, "potstill_export.json"])
@pytest.mark.parametrize(
    "content", [b"{\xff", b"", b"[1]", b"null", b'{"a": NaN}', b"[" * 10**5, b'{"a":' * 10**5, b"\0" * 64]
)
def test_damaged_json_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes) -> None:
    folder = write_export(tmp_path / "model")
    (folder / name).write_bytes(content)
    message = said(capsys, "--model", str(folder))
    assert f"{folder}/{name} is damaged: " in message
    assert message.endswith("; export the model again.\n")


@pytest.mark.parametrize("length", ["many", None, 0, -5, True, [128], {}])
def test_a_summary_without_a_length_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], length: object) -> None:
    folder = write_export(tmp_path / "model")
    (folder / "potstill_export.json").write_text(json.dumps({"max_length": length}))
    assert f"potstill_export.json is damaged: its max_length is {length!r}" in said(capsys, "--model", str(folder))


@pytest.mark.parametrize("length", ["many", None, 0, -5, True, [128], 1e300, 10**400])
def test_a_tokenizer_without_a_length_leaves_it_to_the_model(tmp_path: Path, length: object) -> None:
    folder = write_export(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    assert ServedModel.open(str(folder), "--model").max_length == 512


@pytest.mark.parametrize(
    "changes",
    [
        *({"architectures": value} for value in ("BertForMaskedLM", [1], [["a"]], {"a": 1}, 5)),
        *({"id2label": value} for value in ({"a": "b"}, ["a", "b"], "ab", {"0": {"1": "a"}})),
        *({"max_position_embeddings": value} for value in ("many", -1, [512], {"a": 1})),
        *({"num_hidden_layers": value} for value in ("six", [6], -1)),
        *({"problem_type": value} for value in (5, ["multi_label_classification"])),
    ],
)
def test_a_config_of_other_types_is_told_or_does_no_harm(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = write_export(tmp_path / "model", **changes)
    try:
        described = ServedModel.open(str(folder), "--model").description("")
    except PotstillError as error:
        assert str(error).startswith("--model ")  # noqa: PT017 (either is right)
    else:
        assert isinstance(described["layers"], int | None)
        assert described["max_length"] == 128
        json.dumps(described, allow_nan=False)


@pytest.mark.parametrize("name", [name for name in (*NAMES, *BROKEN) if "/" not in name])
def test_names_reach_the_page_as_they_are(tmp_path: Path, name: str) -> None:
    head = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": name, "1": "b"}}
    model = ServedModel.open(str(write_export(tmp_path / name, **head)), "--model")
    with PageServer([model]) as server:
        described = json.loads(server.texts["/models.json"])["models"][0]
    assert (described["name"], described["labels"]) == (name, [name, "b"])
