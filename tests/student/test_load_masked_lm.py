import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, processors
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from potstill.errors import PotstillError
from potstill.finetuning.models import load_with_head
from potstill.student import build_student, load_masked_lm
from potstill.student.loading import check_vocabulary, load_headless

MakeBert = Callable[..., BertForMaskedLM]


@pytest.fixture
def folder(make_bert: MakeBert, tmp_path: Path) -> Path:
    make_bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(name_or_path: Path | str) -> str:
    """The sentence that loading is refused with."""
    with pytest.raises(PotstillError) as caught:
        load_masked_lm(str(name_or_path))
    message = str(caught.value)
    assert message.startswith("the ")
    assert str(name_or_path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("tied", [True, False])
def test_what_was_saved_comes_back(make_bert: MakeBert, input_ids: torch.Tensor, tmp_path: Path, tied: bool) -> None:
    model = make_bert(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_masked_lm(str(tmp_path))
    assert type(loaded) is BertForMaskedLM
    assert not loaded.training
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path)
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)


def test_feed_forward_layers_are_never_computed_in_chunks(
    folder: Path, make_bert: MakeBert, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    edit_config(folder, chunk_size_feed_forward=7)
    assert input_ids.shape[1] % 7
    with pytest.raises(ValueError, match="multiple of the chunk size 7"):
        BertForMaskedLM.from_pretrained(folder)(input_ids)
    loaded, expected = load_masked_lm(str(folder)), make_bert()
    assert torch.equal(loaded(input_ids).logits, expected(input_ids).logits)
    student = build_student(loaded)
    student.save_pretrained(tmp_path / "student")
    again = type(student).from_pretrained(tmp_path / "student")  # without potstill
    assert torch.equal(again(input_ids).logits, student.eval()(input_ids).logits)
    head = AutoModelForSequenceClassification
    # Encoders of tasks and of sentences go another way.
    for load in (lambda: load_headless(folder, "the model"), lambda: load_with_head(str(folder), head, None, seed=0)):
        assert load().config.chunk_size_feed_forward == 0


def test_precision_is_the_callers_choice_and_not_the_files(make_bert: MakeBert, tmp_path: Path) -> None:
    make_bert(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_masked_lm(str(tmp_path)).dtype == torch.float32
    assert load_masked_lm(str(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_sharded_weights(make_bert: MakeBert, input_ids: torch.Tensor, tmp_path: Path) -> None:
    model = make_bert()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_masked_lm(str(tmp_path))(input_ids).logits, model(input_ids).logits)
    shards[1].unlink()
    assert "cannot be loaded" in refusal(tmp_path)


def test_a_pretraining_checkpoint_loads_without_its_sentence_head(make_bert: MakeBert, tmp_path: Path) -> None:
    BertForPreTraining(make_bert().config).save_pretrained(tmp_path)
    assert type(load_masked_lm(str(tmp_path))) is BertForMaskedLM


def test_the_output_bias_of_untied_transformers_4_files(
    make_bert: MakeBert, input_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = make_bert(tie_word_embeddings=False)
    model.cls.predictions.decoder.bias.data.copy_(model.cls.predictions.bias.data)
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop("cls.predictions.decoder.bias"))
    assert torch.equal(load_masked_lm(str(tmp_path))(input_ids).logits, model(input_ids).logits)


@pytest.fixture(params=[logging.INFO, logging.ERROR])
def verbosity(request: pytest.FixtureRequest) -> Iterator[int]:
    before = logging.get_verbosity()
    logging.set_verbosity(request.param)
    logging.enable_progress_bar()  # the command line, which other tests call, turns it off
    yield request.param
    logging.set_verbosity(before)


def test_loading_is_silent_and_leaves_the_settings_as_they_were(
    make_bert: MakeBert, tmp_path: Path, capfd: pytest.CaptureFixture[str], verbosity: int
) -> None:
    BertForPreTraining(make_bert().config).save_pretrained(tmp_path)  # surplus tensors: transformers reports them
    random_state = torch.get_rng_state()
    capfd.readouterr()
    load_masked_lm(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == verbosity
    assert logging.is_progress_bar_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_model_without_a_masked_lm_head(
    make_bert: MakeBert, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    BertModel(make_bert().config).save_pretrained(tmp_path)
    capfd.readouterr()
    random_state = torch.get_rng_state()
    assert "no complete language-model head (its weights lack cls.predictions" in refusal(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_role_is_named(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"^the student '.*' has no config\.json"):
        load_masked_lm(str(tmp_path), role="student")


def test_no_such_folder(tmp_path: Path, folder: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "does not exist" in refusal("./nowhere")
    assert "does not exist" in refusal("~no-such-user/nowhere")
    assert "is a file" in refusal(folder / "config.json")
    assert "empty name" in refusal("")


def test_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "the Hugging Face hub did not give it" in refusal("somebody/potstill-no-such-model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the Hugging Face hub did not give it" in refusal("somebody/potstill-no-such-model")
    assert "the Hugging Face hub did not give it" in refusal("not a valid name")


def test_broken_configs(folder: Path) -> None:
    file = folder / "config.json"
    good = file.read_text()
    for bad, says in [
        ("{", "is damaged: it is not JSON"),
        ("", "is damaged: it is empty"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[1]", "not a JSON object"),
        ("{}", "type None are not supported"),
        (good.replace('"hidden_size": 24', '"hidden_size": "wide"'), "not usable"),
        (good.replace('"hidden_size": 24', '"hidden_size": 25'), "whose hidden_size is 25: no tensor"),
    ]:
        assert bad != good
        file.write_text(bad)
        assert says in refusal(folder), bad
    file.write_bytes(b"\xff\xfe\x00{")
    assert "byte 0 is not UTF-8 text" in refusal(folder)
    file.unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_code_of_its_own_is_never_run(folder: Path, model_type: str) -> None:
    witness = folder / "witness"
    (folder / "own.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForMaskedLM": "own.OwnModel"}
    edit_config(folder, model_type=model_type, auto_map=auto_map)
    assert "asks for code of its own" in refusal(folder)
    assert not witness.exists()


def test_attention_code_named_by_the_config_is_not_fetched(folder: Path) -> None:
    edit_config(folder, attn_implementation="somebody/attention-kernel")
    assert load_masked_lm(str(folder)).config._attn_implementation == "sdpa"


def test_weights_named_by_the_config_are_not_unpickled(folder: Path, input_ids: torch.Tensor) -> None:
    expected = load_masked_lm(str(folder))(input_ids).logits
    other = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(other, folder / "adapter_model.bin")
    edit_config(folder, transformers_weights="adapter_model.bin")
    assert torch.equal(load_masked_lm(str(folder))(input_ids).logits, expected)


def test_an_adapter_is_not_a_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal(folder)


def test_an_unknown_type_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    BartConfig(architectures=["BartForConditionalGeneration"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"unreadable")
    assert "'bart' are not supported: they are encoder-decoders" in refusal(tmp_path)


@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, "int8"])
def test_a_quantised_checkpoint_is_refused(folder: Path, how: object) -> None:
    edit_config(folder, quantization_config=how)
    method = " (gptq)" if isinstance(how, dict) and "bits" in how else ""
    assert f"is quantised{method}: give the checkpoint in float that it was made from" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"is_decoder": True}, "is a decoder"), ({"position_embedding_type": "relative_key"}, "'relative_key' positions")],
)
def test_models_that_a_family_cannot_use(folder: Path, changes: dict[str, object], says: str) -> None:
    edit_config(folder, **changes)
    assert says in refusal(folder)


def test_pickled_or_no_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    assert "convert them to safetensors" in refusal(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "has no weights" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 5, 900, 0.5, 0.999])
def test_truncated_weights(folder: Path, kept: float) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "damaged or incomplete" in refusal(folder)


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    edit_config(folder, intermediate_size=41)
    assert "intermediate.dense.bias is 40 in the file and 41 by the config" in refusal(folder)
    edit_config(folder, intermediate_size=40, num_hidden_layers=3)
    assert "the config has no place for bert.encoder.layer.3." in refusal(folder)
    edit_config(folder, num_hidden_layers=5)
    assert "config.json, whose num_hidden_layers is 5: they hold 4 layers" in refusal(folder)


def test_a_missing_tensor_of_the_encoder(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("bert.embeddings.LayerNorm.weight"))
    assert "1 tensor of the model is not in its files, bert.embeddings.LayerNorm.weight" in refusal(folder)


def test_a_distilbert_without_its_head(make_bert: MakeBert, tmp_path: Path) -> None:
    build_student(make_bert()).distilbert.save_pretrained(tmp_path)
    assert "no complete language-model head" in refusal(tmp_path)


def tokenizer_of(vocabulary: dict[str, int], added: tuple[str, ...] = (), **special: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "[UNK]")), **special)
    tokenizer.add_tokens(list(added))
    return tokenizer


@pytest.mark.parametrize("tokenizer_kind", ["added", "special", "gap", "frame"])
def test_an_id_beyond_the_embeddings_is_refused_however_it_comes_about(tokenizer_kind: str) -> None:
    known = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = {
        "added": lambda: tokenizer_of(known, ("<url>",)),
        "special": lambda: tokenizer_of(known, mask_token="[MASK]"),
        "gap": lambda: tokenizer_of({"[UNK]": 0, "a": 3}),  # two tokens, but the ids go up to 3
        "frame": lambda: tokenizer_of(known),
    }[tokenizer_kind]()
    if tokenizer_kind == "frame":
        frame = processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 3)])
        tokenizer.backend_tokenizer.post_processor = frame
    with pytest.raises(PotstillError, match=r"the model 'm' knows 3 tokens, but its tokenizer gives the id 3 \("):
        check_vocabulary(tokenizer, BertConfig(vocab_size=3), "the model 'm'")
    check_vocabulary(tokenizer, BertConfig(vocab_size=4), "the model 'm'")


def test_rows_to_spare_and_gaps_below_them_are_no_fault() -> None:
    check_vocabulary(tokenizer_of({"[UNK]": 0, "a": 7}), BertConfig(vocab_size=8), "the model 'm'")
