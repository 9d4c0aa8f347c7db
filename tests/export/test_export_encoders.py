"""Exports of sentence encoders: embeddings as a naive computation has them, and a folder that others can read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from encoder_samples import LENGTH
from samples import WORDS
from scipy.stats import spearmanr
from transformers import AutoTokenizer, BertTokenizer

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.check import compare
from potstill.export.embeddings import EmbeddingComparison
from potstill.export.formats import FORMATS
from potstill.export.loaded import ExportedEncoder, load_exported
from potstill.export.onnx import FLOAT
from potstill.export.onnx_int8 import quantise_onnx
from potstill.export.openvino import OpenvinoModel, write_openvino
from potstill.export.runtime import ExportedFolder
from potstill.export.source import EMBEDDING, Source
from potstill.sentences import MODES, SentenceEncoder

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")


@pytest.fixture(scope="module")
def source(pooled_encoder: Path) -> Source:
    return Source.open(str(pooled_encoder))


def texts(count: int) -> list[str]:
    generator = np.random.default_rng(np.random.randint(2**31))  # other texts at every call
    return [" ".join(generator.choice(WORDS, size=generator.integers(2, 15))) for _ in range(count)]


def masked_inputs(generator: np.random.Generator, rows: int, length: int) -> dict[str, Any]:
    """Random tokens, with padding on the right, on the left, or none."""
    ids = generator.integers(5, 90, size=(rows, length))
    mask = np.ones_like(ids)
    for row in range(1, rows):
        cut = generator.integers(1, length)
        mask[row, (slice(cut, None) if row % 2 else slice(None, cut))] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def naive_pooling(hidden: Any, mask: Any) -> Any:
    """All modes of one text in float64, token by token."""
    rows = [row.astype(np.float64) for row, one in zip(hidden, mask, strict=True) if one]
    count = len(rows)
    by_mode = {
        "cls": rows[0],
        "max": np.max(rows, axis=0),
        "mean": sum(rows) / count,
        "mean_sqrt_len_tokens": sum(rows) / count**0.5,
        "weightedmean": sum(row * place for place, row in enumerate(rows, 1)) / (count * (count + 1) / 2),
        "lasttoken": rows[-1],
    }
    return np.concatenate([by_mode[mode] for mode in MODES])


def test_every_pooling_sees_the_mask_and_no_padding(source: Source, exported_encoder: Path) -> None:
    runtime, generator = (
        ExportedFolder.read(exported_encoder).open(threads=1),
        np.random.default_rng(np.random.randint(2**31)),
    )
    assert source.encoder is not None
    linear: Any = source.encoder.dense[0].linear
    weight, bias = (of.detach().double().numpy() for of in (linear.weight, linear.bias))
    for rows, length in ((1, 2), (6, 11), (4, LENGTH)):
        inputs = masked_inputs(generator, rows, length)
        found = runtime.run(inputs)
        assert list(found) == ["last_hidden_state", EMBEDDING]
        hidden = source.run(inputs)["last_hidden_state"]
        inside = inputs["attention_mask"].astype(bool)
        np.testing.assert_allclose(found["last_hidden_state"][inside], hidden[inside], atol=1e-4)
        for row in range(rows):
            pooled = naive_pooling(hidden[row], inputs["attention_mask"][row])
            np.testing.assert_allclose(found[EMBEDDING][row], np.tanh(weight @ pooled + bias), atol=1e-4)
        other = inputs | {"input_ids": np.where(inside, inputs["input_ids"], 7)}
        np.testing.assert_allclose(runtime.run(other)[EMBEDDING], found[EMBEDDING], atol=1e-5)


def test_the_folder_is_an_encoder_for_others_and_for_potstill(pooled_encoder: Path, exported_encoder: Path) -> None:
    summary = json.loads((exported_encoder / "potstill_export.json").read_text())
    assert summary["task"] == "feature-extraction"
    assert summary["max_length"] == LENGTH == AutoTokenizer.from_pretrained(exported_encoder).model_max_length
    assert summary["agreement"]["lowest"] > 0.9999
    assert summary["agreement"]["same"] == 1
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "config_sentence_transformers.json"):
        assert json.loads((exported_encoder / name).read_text()) == json.loads((pooled_encoder / name).read_text())
    assert (exported_encoder / "2_Dense" / "model.safetensors").is_file()
    session = onnxruntime.InferenceSession(exported_encoder / FLOAT)
    # The name that optimum-onnx asks for, by which sentence-transformers runs ONNX.
    assert session.get_outputs()[0].name == "last_hidden_state"
    read = ExportedFolder.read(exported_encoder)
    assert read.bytes == (exported_encoder / FLOAT).stat().st_size
    loaded, encoder = load_exported(read, threads=1), SentenceEncoder.load(pooled_encoder)
    assert isinstance(loaded, ExportedEncoder)
    some = [*texts(9), " ".join(WORDS)]
    np.testing.assert_allclose(loaded.encode(some, batch_size=4), encoder.encode(some, batch_size=3), atol=1e-4)
    assert loaded.cut == encoder.cut == 1
    assert loaded.prompts == encoder.prompts == {"ask": "bola kir "}


def test_sentence_transformers_runs_the_folder(pooled_encoder: Path, exported_encoder: Path) -> None:
    pytest.importorskip("optimum.onnxruntime")
    judge = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(exported_encoder), backend="onnx", device="cpu"
    )
    some = texts(6)
    np.testing.assert_allclose(judge.encode(some), SentenceEncoder.load(pooled_encoder).encode(some), atol=1e-4)


def test_other_runtimes_and_int8(source: Source, exported_encoder: Path, tmp_path: Path) -> None:
    write_openvino(exported_encoder / FLOAT, tmp_path / "openvino_model.xml")
    agreement: Any = compare(source, OpenvinoModel(tmp_path / "openvino_model.xml", threads=1))
    assert agreement.relative < 1e-4
    assert agreement.same == 1
    (tmp_path / "float.onnx").write_bytes((exported_encoder / FLOAT).read_bytes())
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", 8, None)
    agreement = compare(source, FORMATS["onnx-int8"].open(tmp_path / "int8.onnx", (), (), 1))
    assert 1e-4 < agreement.relative < 0.25
    assert agreement.lowest > 0.97


class Turned:
    """Says something else than its source: noise of a size is added to one of the outputs."""

    def __init__(self, source: Source, output: str, noise: float) -> None:
        self.source, self.output, self.noise = source, output, noise

    def run(self, inputs: Any) -> Any:
        found = self.source.run(inputs)
        shape, spread = found[self.output].shape, found[self.output].std()
        generator = np.random.default_rng(0)
        return found | {self.output: found[self.output] + generator.normal(0, self.noise * spread, shape)}


def test_agreement_is_what_a_plain_computation_finds(source: Source) -> None:
    comparison = EmbeddingComparison(source, Turned(source, EMBEDDING, 0.3))
    some = texts(12)
    pairs = [comparison.run(source.tokenise([text])) for text in [*some, some[0]]]
    ones, others = (np.concatenate([pair[side][EMBEDDING] for pair in pairs]).astype(np.float64) for side in (0, 1))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ones, others, strict=True)]
    found = comparison.agreement()
    assert found.texts == len(set(some))  # a text that comes twice would be its own neighbour
    assert found.lowest == pytest.approx(min(cosines))
    assert found.mean == pytest.approx((sum(cosines) + len(cosines)) / 2 / len(cosines), abs=1e-4)  # hidden are equal
    apart = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(ones, others, strict=True)]
    assert found.largest == pytest.approx(max(apart))
    unit = [side[:-1] / np.linalg.norm(side[:-1], axis=1)[:, None] for side in (ones, others)]
    similar = [[a @ b for place, a in enumerate(of) for b in of[:place]] for of in unit]
    assert found.order == pytest.approx(spearmanr(*similar)[0])


@pytest.mark.parametrize("output", ["last_hidden_state", EMBEDDING])
def test_an_export_that_is_off_is_not_written(
    output: str,
    source: Source,
    pooled_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretended = {"write": lambda *_: None, "open": lambda *_: Turned(source, output, 0.5)}
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], **pretended))
    words = ["export", "--model", str(pooled_encoder), "--format", "onnx", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "does not agree with" in said
    assert "over the --tolerance of 0.10%" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def exports(
    pooled_encoder: Path, exported_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """The command line of an export whose file is there already."""

    def write(source: Source, file: Path, *_: object) -> None:
        file.write_bytes((exported_encoder / FLOAT).read_bytes())

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], write=write))

    def words(*options: str, model: Path = pooled_encoder) -> list[str]:
        out = ["--format", "onnx", "--output_dir", str(tmp_path / "out")]
        return ["export", "--model", str(model), *out, *options]

    return words


def test_pairs_with_scores_are_scored_before_and_after(
    source: Source, exports: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        (round(float(score), 2), *texts(2))
        for score in np.random.default_rng(np.random.randint(2**31)).uniform(0, 5, 20)
    ]
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{score}\t{one}\t{other}\n" for score, one, other in rows))
    assert main(exports("--check_data", str(file))) == 0
    assert "spearman " in capsys.readouterr().out
    scores = json.loads((tmp_path / "out" / "potstill_export.json").read_text())["scores"]
    assert source.encoder is not None
    ones, others = (source.encoder.encode([row[side] for row in rows]).astype(np.float64) for side in (1, 2))
    cosines = (ones * others).sum(1) / np.linalg.norm(ones, axis=1) / np.linalg.norm(others, axis=1)
    wanted = 100 * spearmanr(cosines, [score for score, *_ in rows])[0]
    assert scores["before"]["score"] == pytest.approx(wanted, abs=1e-6)
    assert scores["after"]["score"] == pytest.approx(wanted, abs=1)


def test_what_is_refused(
    exports: Callable[..., list[str]],
    pooled_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*options: str, model: Path = pooled_encoder) -> str:
        assert main(exports(*options, model=model)) == 1
        assert not (tmp_path / "out").exists()
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pooled_encoder, folder)
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        return folder

    (tmp_path / "none.tsv").write_text("\tone\tother\n")
    assert "holds no pair with a score" in said("--check_data", str(tmp_path / "none.tsv"))
    assert "does not exist" in said("--check_data", str(tmp_path / "absent.tsv"))
    assert "is a sentence encoder, which --task is not for" in said("--task", "stsb")
    pooling = "1_Pooling/config.json"
    assert "leaves the prompt out" in said(model=changed(pooling, lambda of: of.update(include_prompt=False)))
    assert "pooling of an unknown kind" in said(model=changed(pooling, lambda of: of.update(pooling_mode="median")))
    damaged = changed(pooling, lambda of: None)
    (damaged / "2_Dense" / "model.safetensors").write_bytes(b"half")
    assert "weights of the module 2_Dense of the model" in said(model=damaged)
    shutil.rmtree(damaged / "2_Dense")
    assert "is incomplete: its modules.json names the folder 2_Dense" in said(model=damaged)
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], encoders=False))
    assert "is a sentence encoder, which --format onnx is not for: use one of onnx-int8" in said()


def test_damaged_exports_of_encoders(exported_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(exported_encoder, folder)
    (folder / "modules.json").unlink()
    with pytest.raises(PotstillError, match=r"lacks its modules.json: export the model again"):
        load_exported(ExportedFolder.read(folder))
    shutil.copyfile(exported_encoder / "modules.json", folder / "modules.json")
    summary = json.loads((folder / "potstill_export.json").read_text())
    for change, told in (
        ({"outputs": ["last_hidden_state"]}, f"lacks its output {EMBEDDING}"),
        ({"task": "fill-mask"}, "is for fill-mask, so it is neither a sentence encoder nor a reranker"),
    ):
        (folder / "potstill_export.json").write_text(json.dumps(summary | change))
        with pytest.raises(PotstillError, match=told):
            load_exported(ExportedFolder.read(folder))


def test_a_model_without_a_head_is_an_encoder_too(
    make_teacher: Callable[..., Path], tiny_tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(make_teacher()).save_pretrained(tmp_path / "plain")
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    source = Source.open(str(tmp_path / "plain"))
    assert source.encoder is not None
    assert source.encoder.pooling.modes == ("mean",)
    assert source.encoder.normalize
