"""Folders of encoders: of every version, of a model alone, and those that are refused in one sentence."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from sentence_samples import TEXTS, headless, random_dense, small_encoder
from transformers import AlbertConfig, ViTConfig

from potstill.errors import PotstillError
from potstill.sentences import Pooling, SentenceEncoder
from potstill.student import load_masked_lm, model_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_encoder(dense=random_dense(24, 6)).save(tmp_path / "encoder")
    return tmp_path / "encoder"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_modules(folder: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    file = folder / "modules.json"
    modules = json.loads(file.read_text())
    change(modules)
    file.write_text(json.dumps(modules))


def refusal(folder: Path) -> str:
    with pytest.raises(PotstillError) as caught:
        SentenceEncoder.load(folder, role="student")
    message = str(caught.value)
    assert "\n" not in message
    assert f"the student {str(folder)!r}" in message or str(folder) in message
    return message


def test_the_model_may_lie_in_a_folder_of_its_own(folder: Path) -> None:
    expected = SentenceEncoder.load(folder).encode(TEXTS)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(inner / file.name)
    edit_modules(folder, lambda modules: modules[0].update(path="0_Transformer"))
    (inner / "sentence_bert_config.json").rename(inner / "sentence_roberta_config.json")
    edit(inner / "sentence_roberta_config.json", max_seq_length=19)
    np.testing.assert_array_equal(SentenceEncoder.load(folder).encode(TEXTS), expected)


def test_a_length_that_nobody_states_is_that_of_the_tokenizer_or_of_the_model(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=None)
    edit(folder / "tokenizer_config.json", model_max_length=7)
    assert SentenceEncoder.load(folder).max_length == 7
    edit(folder / "tokenizer_config.json", model_max_length=4096)
    assert SentenceEncoder.load(folder).max_length == 19


def test_lower_case(folder: Path) -> None:
    encoder = SentenceEncoder.load(folder)
    encoder.tokenizer.backend_tokenizer.normalizer = None
    encoder.tokenizer.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    assert "[UNK]" in SentenceEncoder.load(folder).tokenizer.tokenize("BOL")
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    assert SentenceEncoder.load(folder).tokenizer.tokenize("BOL") == ["bol"]


@pytest.mark.parametrize("with_head", [True, False])
def test_a_model_alone(teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, with_head: bool) -> None:
    model = load_masked_lm(str(teacher_folder))
    where = teacher_folder
    if not with_head:
        where = tmp_path / "alone"
        shutil.copytree(teacher_folder, where)
        model.bert.save_pretrained(where)
    with caplog.at_level(logging.WARNING):
        encoder = SentenceEncoder.load(where)
    assert encoder.model.pooler is None  # its weights are not in the files
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == (Pooling(("mean",)), True, 32)
    assert encoder.similarity_fn_name == "cosine"
    left_out = " Its head (BertForMaskedLM) is left out." if with_head else ""
    (message,) = caplog.messages
    assert message.startswith(f"The teacher {str(where)!r} has no modules.json: its embeddings are the mean")
    assert message.endswith(f"normalised to length 1.{left_out}")
    inputs = encoder.tokenizer(TEXTS[3], return_tensors="pt")
    theirs = model.bert(**inputs).last_hidden_state
    assert torch.equal(encoder.model(**inputs).last_hidden_state, theirs)
    encoder.save(tmp_path / "saved")
    np.testing.assert_array_equal(SentenceEncoder.load(tmp_path / "saved").encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.usefixtures("network")
def test_what_is_fetched_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = ["0_Transformer/model.safetensors", "0_Transformer/config.json", "0_Transformer/tokenizer.json"]
    left = ["pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_tokenizer.bin"]

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        fetched = list(filter_repo_objects([*files, *inner, *left], allow_patterns=allow_patterns))
        assert sorted(fetched) == sorted({*files, *inner})  # the card too: its licence is carried over
        for file in set(fetched) - {*inner}:
            (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, tmp_path / "hub" / file)
        return str(tmp_path / "hub")

    monkeypatch.setattr(model_files, "snapshot_download", snapshot_download)
    encoder = SentenceEncoder.load("somebody/encoder")
    assert encoder.model.name_or_path == "somebody/encoder"
    np.testing.assert_array_equal(encoder.encode(TEXTS), SentenceEncoder.load(folder).encode(TEXTS))


MODULES = [
    (lambda modules: modules[1].update(type="my_code.Pooling"), r"names code of its own \(my_code.Pooling\)"),
    (lambda modules: modules[2].update(type="sentence_transformers.models.LSTM"), r"does not know \(LSTM\)"),
    (lambda modules: modules[1].update(path="9_Pooling"), "names the folder 9_Pooling, which is not there"),
    (lambda modules: modules[1].update(path="../elsewhere"), "does not lie in that of the encoder"),
    (lambda modules: modules[1].update(path="/etc"), "does not lie in that of the encoder"),
    (lambda modules: modules.pop(1), "has the modules Transformer, Dense, Normalize: potstill computes"),
    (lambda modules: modules.insert(2, modules.pop(3)), "has the modules Transformer, Pooling, Normalize, Dense"),
    (lambda modules: modules.clear(), "has the modules of nothing"),
    (lambda modules: modules[1].pop("path"), "has a module without a path or a type"),
    (lambda modules: modules.append(3), "is not a list of modules"),
]


@pytest.mark.parametrize(("change", "says"), MODULES)
def test_lists_of_modules(folder: Path, change: Callable[..., object], says: str) -> None:
    edit_modules(folder, change)
    with pytest.raises(PotstillError, match=says):
        SentenceEncoder.load(folder)
    assert refusal(folder)


FILES = [
    ("sentence_bert_config.json", {"max_seq_length": 20}, "max_seq_length of 20, but its model reads 19 tokens"),
    ("sentence_bert_config.json", {"max_seq_length": 2}, "leaves no room for text beside 2 special tokens"),
    ("sentence_bert_config.json", {"max_seq_length": "9"}, "the max_seq_length '9', which is no number of tokens"),
    ("sentence_bert_config.json", {"config_kwargs": {"num_hidden_layers": 1}}, r"options of its own \(config_kwargs\)"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "is for the task 'fill-mask'"),
    ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "is a CrossEncoder and not a sentence"),
    ("config_sentence_transformers.json", {"truncate_dim": 3}, "shortens embeddings"),
    ("config_sentence_transformers.json", {"prompts": {"a": 3}}, "has prompts that are no texts"),
    ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "the default prompt 'q', which is not among"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_sum": 1}, "of an unknown kind"),
    ("1_Pooling/config.json", {"word_embedding_dimension": 25}, "is for hidden states 25 wide, and its model's are 24"),
    ("2_Dense/config.json", {"in_features": 25}, "do not fit its config"),
    ("2_Dense/config.json", {"in_features": 10**12}, "do not fit its config"),
    ("2_Dense/config.json", {"in_features": None}, "has no in_features and out_features"),
    ("2_Dense/config.json", {"bias": False}, "do not fit its config"),
    ("2_Dense/config.json", {"use_residual": True}, "adds its input to its output"),
    ("2_Dense/config.json", {"activation_function": "os.system"}, "the activation os.system, which potstill does not"),
    ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "works on 'token_embeddings'"),
    ("config.json", {"hidden_size": 25}, "no tensor in them has such a dimension"),
    ("config.json", {"num_hidden_layers": 3}, "has no place for encoder.layer.3"),
    ("config.json", {"auto_map": {"AutoModel": "code.Model"}}, "asks for code of its own"),
]


@pytest.mark.parametrize(("name", "changes", "says"), FILES)
def test_settings(folder: Path, name: str, changes: dict[str, object], says: str) -> None:
    edit(folder / name, **changes)
    with pytest.raises(PotstillError, match=says):
        SentenceEncoder.load(folder)
    assert refusal(folder)


def test_damaged_files(folder: Path) -> None:
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-9])
        assert "is damaged" in refusal(folder)
        (folder / name).write_bytes(before)
    (folder / "1_Pooling" / "config.json").unlink()
    assert "cannot be read" in refusal(folder)


def test_weights_of_a_dense_module(folder: Path) -> None:
    file = folder / "2_Dense" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "linear.bias": weights["linear.bias"] / 0}, file)
    assert "linear.bias has 6 weights that are not a finite number" in refusal(folder)
    save_file({"linear.weight": weights["linear.weight"]}, file)
    assert "do not fit its config" in refusal(folder)
    file.write_bytes(file.read_bytes()[:20])
    assert "are damaged or incomplete" in refusal(folder)
    file.rename(file.with_name("pytorch_model.bin"))
    assert "has only pickled weights" in refusal(folder)
    file.with_name("pytorch_model.bin").unlink()
    assert "has no weights" in refusal(folder)


def test_dense_modules_that_do_not_follow_each_other(tmp_path: Path) -> None:
    small_encoder(dense=[*random_dense(24, 6), *random_dense(7, 5)]).save(tmp_path)
    assert "reads vectors 7 wide, and those before it are 6 wide" in refusal(tmp_path)


def test_weights_of_the_model(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "encoder.layer.2.output.dense.weight"
    save_file({key: tensor for key, tensor in weights.items() if key != name}, file, metadata={"format": "pt"})
    assert f"are incomplete: 1 tensor of the model is not in its files, {name} among them" in refusal(folder)
    save_file(weights | {name: weights[name] * torch.nan}, file, metadata={"format": "pt"})
    assert f"{name} has 960 weights that are not a finite number" in refusal(folder)


def test_a_model_of_images(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=4, patch_size=2
    )
    headless(config).save_pretrained(tmp_path)
    assert "reads pixel_values and not text" in refusal(tmp_path)


def test_an_architecture_of_no_family_loads_and_comes_back(tmp_path: Path) -> None:
    encoder = small_encoder()
    sizes = {"hidden_size": 24, "embedding_size": 8, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = AlbertConfig(
        vocab_size=len(encoder.tokenizer), intermediate_size=16, max_position_embeddings=19, pad_token_id=0, **sizes
    )
    encoder.model = headless(config)
    encoder.save(tmp_path)
    np.testing.assert_array_equal(SentenceEncoder.load(tmp_path).encode(TEXTS), encoder.encode(TEXTS))
