"""A cut model says of the tokens that are left what the whole one says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families_samples import CONFIGS, random_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BlenderbotSmallConfig,
    BlenderbotSmallForConditionalGeneration,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)

from potstill import PotstillError, build_student, prune_embeddings, prune_vocabulary
from potstill.student import usable_length

KEPT = torch.tensor([0, 1, 2, 3, 4, *range(7, 101, 3)])


def ids(kept: torch.Tensor, seed: int = 0, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """(4, length) random tokens in the ids of the cut model, and in those of the whole one."""
    cut = torch.randint(0, len(kept), (4, length), generator=torch.Generator().manual_seed(seed))
    return cut, kept[cut]


def assert_same(model: PreTrainedModel, cut: PreTrainedModel, kept: torch.Tensor, length: int = 12) -> None:
    mine, its = ids(kept, length=length)
    with torch.no_grad():
        hidden = [one(input_ids, output_hidden_states=True) for one, input_ids in ((model, its), (cut, mine))]
    for before, after in zip(hidden[0].hidden_states, hidden[1].hidden_states, strict=True):
        assert torch.equal(before, after)
    if "logits" in hidden[0]:
        logits = hidden[0].logits
        logits = logits if cut.get_output_embeddings() is None else logits[..., kept]
        torch.testing.assert_close(hidden[1].logits, logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_hidden_states_and_logits_are_the_same(model_type: str, tied: bool) -> None:
    model = random_model(CONFIGS[model_type](tie_word_embeddings=tied), torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = prune_embeddings(model, KEPT)
    assert cut.config.vocab_size == len(KEPT) == len(cut.get_input_embeddings().weight)
    assert (cut.get_output_embeddings().weight is cut.get_input_embeddings().weight) == tied
    assert cut.dtype == torch.float64
    assert not cut.training
    assert_same(model, cut, KEPT)
    assert model.config.vocab_size == 101
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert_same(build_student(model, layers=[0, 2]), build_student(cut, layers=[0, 2]), KEPT)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "a decoder": lambda: _of(AutoModelForCausalLM, _gpt2()),
    "alternating attention": lambda: _of(
        AutoModelForMaskedLM,
        ModernBertConfig(
            vocab_size=101,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            pad_token_id=3,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
    ),
    "relative positions": lambda: _of(AutoModelForMaskedLM, _small(MPNetConfig, pad_token_id=1)),
    "no head": lambda: _of(AutoModel, _small(BertConfig)),
    "another head": lambda: _of(AutoModelForSequenceClassification, _small(RobertaConfig, pad_token_id=1)),
}


def _gpt2() -> GPT2Config:
    return GPT2Config(vocab_size=101, n_positions=20, n_embd=24, n_layer=2, n_head=3, bos_token_id=4, eos_token_id=4)


def _small(kind: Callable[..., Any], **options: Any) -> Any:
    sizes = {"vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    return kind(**sizes, intermediate_size=40, max_position_embeddings=30, **options)


def _of(auto: Any, config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return auto.from_config(config).double().eval()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_of_no_family(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    assert_same(model, prune_embeddings(model, KEPT), KEPT)


@pytest.mark.parametrize("kept", [KEPT, torch.tensor([0, *range(5, 60, 2)]), torch.arange(7, 80)], ids=len)
def test_positions_counted_from_padding_stay_the_same(kept: torch.Tensor) -> None:
    model = random_model(CONFIGS["roberta"](pad_token_id=7, max_position_embeddings=28), torch.float64)
    assert usable_length(model.config) == 20
    cut = prune_embeddings(model, kept)
    assert cut.config.pad_token_id == kept.tolist().index(7)
    assert usable_length(cut.config) == 20
    assert cut.roberta.embeddings.word_embeddings.padding_idx == cut.config.pad_token_id
    assert cut.roberta.embeddings.position_embeddings.padding_idx == cut.config.pad_token_id
    assert_same(model, cut, kept, length=20)  # padding is among the tokens


def test_a_model_that_counts_from_a_fixed_id_is_refused_where_that_changes() -> None:
    model = MODELS["relative positions"]()
    with pytest.raises(PotstillError, match="MPNetForMaskedLM cannot be cut, because it would not say the same"):
        prune_embeddings(model, torch.arange(1, 50))


def test_the_ids_in_the_config_are_those_of_the_same_tokens() -> None:
    config = BertConfig(**CONFIGS["bert"]().to_dict() | {"pad_token_id": 7, "bos_token_id": 10, "eos_token_id": 6})
    config.mask_token_id, config.sep_token_id = 4, [1, 6, 100]
    cut = prune_embeddings(random_model(config), KEPT).config
    assert (cut.pad_token_id, cut.bos_token_id, cut.eos_token_id, cut.mask_token_id) == (5, 6, None, 4)
    assert cut.sep_token_id == [1, len(KEPT) - 1]
    model = MODELS["a decoder"]()
    model.generation_config.pad_token_id = 7
    cut = prune_embeddings(model, KEPT)
    assert (cut.generation_config.eos_token_id, cut.generation_config.pad_token_id) == (4, 5)
    assert model.generation_config.pad_token_id == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_and_mode_stay(dtype: torch.dtype) -> None:
    cut = prune_embeddings(random_model(CONFIGS["bert"](), dtype).train(), KEPT)
    assert {parameter.dtype for parameter in cut.parameters()} == {dtype}
    assert cut.training


def test_cutting_leaves_the_random_state() -> None:
    model = random_model(CONFIGS["bert"]())
    before = torch.random.get_rng_state()
    prune_embeddings(model, KEPT)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ([], "not one or more integers in ascending order"),
        ([3, 2], "not one or more integers in ascending order"),
        ([2, 2], "not one or more integers in ascending order"),
        ([-1, 2], "not one or more integers in ascending order"),
        ([0.0, 1.0], "not one or more integers in ascending order"),
        ([[0, 1]], "not one or more integers in ascending order"),
        ([0, 101], "go up to the id 101, but the model '' knows 101 tokens: take the model whose tokenizer"),
        ([0, 2], "counts its positions from the id of padding, 1, which is not among the tokens to keep"),
    ],
)
def test_tokens_that_cannot_be_kept(kept: list[Any], told: str) -> None:
    with pytest.raises(PotstillError, match=told):
        prune_embeddings(random_model(CONFIGS["roberta"]()), kept)


def test_models_that_cannot_be_cut(make_bert: Callable[..., BertForMaskedLM]) -> None:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1}
    pair = BlenderbotSmallForConditionalGeneration(
        BlenderbotSmallConfig(vocab_size=101, decoder_attention_heads=1, **sizes)
    )
    with pytest.raises(PotstillError, match="model of the type blenderbot-small cannot be cut"):
        prune_embeddings(pair, KEPT)
    other = make_bert()
    other.extra = torch.nn.Linear(2, 2)
    with pytest.raises(PotstillError, match="because its tensors are not those of its class"):
        prune_embeddings(other, KEPT)


def test_model_and_tokenizer_together(make_bert: Callable[..., BertForMaskedLM]) -> None:
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    words = ["the", "cat", "dog", "##ing", *(f"unused{n}" for n in range(40))]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate([*pieces, *words])})
    model = make_bert(torch.float64)
    cut, small = prune_vocabulary(model, tokenizer, tokenizer("the cat")["input_ids"])
    assert len(small) == cut.config.vocab_size == len(pieces) + 2
    read, whole = (one("the dog [MASK]", "the cat", return_tensors="pt") for one in (small, tokenizer))
    assert small.convert_ids_to_tokens(read["input_ids"][0])[:5] == ["[CLS]", "the", "d", "##o", "##g"]
    same = tokenizer.convert_tokens_to_ids(small.convert_ids_to_tokens(read["input_ids"][0].tolist()))
    whole = dict(read) | {"input_ids": torch.tensor([same])}
    kept = tokenizer.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    with torch.no_grad():
        torch.testing.assert_close(cut(**read).logits, model(**whole).logits[..., kept], rtol=0, atol=1e-12)

    tokenizer.add_tokens([f"more{n}" for n in range(10)])
    with pytest.raises(PotstillError, match="the model knows 101 tokens, but its tokenizer gives the id"):
        prune_vocabulary(model, tokenizer, [1])
