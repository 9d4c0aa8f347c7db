"""The last layer at some tokens alone, against the model's own forward pass over all of them."""

from __future__ import annotations

import pytest
import torch
from families_samples import SAMPLES, SIZES, random_model
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from potstill.bench.flops import forward_flops
from potstill.precision.simulated import simulate
from potstill.student import Reads, at_tokens, family_of, last_layer_at
from potstill.student.fp8 import Fp8, use_fp8
from potstill.training.predictor import Predictor

ROWS, LENGTH, TOKENS = 3, 16, 5
ABLE = ("bert", "distilbert", "electra", "roberta", "camembert", "xlm-roberta")
MASKED = Reads("masked")


def new_model(model_type: str, **options: object) -> PreTrainedModel:
    return random_model(SAMPLES[model_type](**options)).double()


def new_batch() -> tuple[Tensor, Tensor]:
    positions = torch.stack([torch.randperm(LENGTH)[:TOKENS] for _ in range(ROWS)])
    return torch.randint(5, 101, (ROWS, LENGTH)), positions


@pytest.mark.parametrize("model_type", SAMPLES)
def test_families_that_know_the_parts_of_their_layers_run_it_at_few_tokens(model_type: str) -> None:
    model = random_model(SAMPLES[model_type]())
    assert (last_layer_at(model, MASKED) is not None) == (model_type in ABLE)
    assert (last_layer_at(model, Reads("sampled")) is not None) == (model_type in ABLE)


@pytest.mark.parametrize("reads", [Reads("all"), Reads("masked", {-1}), Reads("masked", {3}), Reads(pooled=True)])
def test_it_runs_whole_if_all_tokens_are_read(reads: Reads) -> None:
    assert last_layer_at(new_model("bert"), reads) is None


@pytest.mark.parametrize("frozen", [True, False])
def test_it_runs_whole_with_8_bit_operands(frozen: bool) -> None:
    model = random_model(SAMPLES["bert"](hidden_size=32, num_attention_heads=2, intermediate_size=64))
    use_fp8(family_of(model).layers(model), Fp8(), frozen=frozen)
    assert last_layer_at(model, MASKED) is None


def test_a_gelu_inside_the_product_is_used_at_few_tokens_too() -> None:
    model = random_model(SAMPLES["bert"]())
    family_of(model).fuse_gelu(model)
    ids, positions = new_batch()
    predictor = Predictor(model, MASKED)
    at = predictor.last_at(positions)
    assert at is not None
    torch.testing.assert_close(predictor(ids, at=at).hidden[-1], predictor(ids).last_at(positions))


def test_it_runs_whole_with_numbers_rounded_as_in_an_export() -> None:
    model = random_model(SAMPLES["bert"]())
    simulate(model, "int8", every_token=True)
    assert last_layer_at(model, MASKED) is None


def test_it_runs_whole_with_another_attention() -> None:
    model = new_model("bert")
    model.set_attn_implementation("eager")
    assert last_layer_at(model, MASKED) is None


@pytest.mark.parametrize("model_type", [name for name in SAMPLES if name in ABLE])
def test_states_and_gradients_are_those_of_the_whole_layer(model_type: str) -> None:
    model = new_model(model_type)
    ids, positions = new_batch()
    weights = torch.randn(ROWS, TOKENS, model.config.hidden_size, dtype=torch.float64)
    predictor = Predictor(model, Reads("masked", {1}))
    found = predictor(ids, at=predictor.last_at(positions))
    assert found.hidden[-1].shape == weights.shape
    assert found.length == LENGTH
    (found.last_at(positions) * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    states = model(ids, output_hidden_states=True).hidden_states
    (at_tokens(states[-1], positions) * weights).sum().backward()
    torch.testing.assert_close(found.hidden[-1], at_tokens(states[-1], positions), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.hidden[1], states[2], rtol=1e-12, atol=1e-12)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_masked_tokens_come_before_the_sampled_ones() -> None:
    model = new_model("bert")
    ids, positions = new_batch()
    masked, sampled = positions[:, :2], positions[:, 2:]
    predictor = Predictor(model, Reads("sampled"))
    at = predictor.last_at(masked, sampled)
    assert at is not None
    found, whole = predictor(ids, at=at), predictor(ids)
    assert whole.length == found.length == LENGTH
    for tokens in ((masked,), (masked, sampled)):
        torch.testing.assert_close(found.last_at(*tokens), whole.last_at(*tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_attention_drops_tokens_in_training_alone(model_type: str) -> None:
    bert = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    distilbert = {"dropout": 0.0, "attention_dropout": 0.5}
    model = new_model(model_type, **(bert if model_type == "bert" else distilbert))
    layer, family = family_of(model).layers(model)[-1], family_of(model)
    assert family.attention_dropout(layer) == 0.5
    ids, positions = new_batch()
    predictor = Predictor(model, MASKED)
    kept = [predictor(ids, at=predictor.last_at(positions)).hidden[-1] for _ in range(2)]
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)
    layer.train()
    dropped = [predictor(ids, at=predictor.last_at(positions)).hidden[-1] for _ in range(2)]
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], kept[0])


@pytest.mark.parametrize("model_type", [name for name in SAMPLES if name in ABLE])
def test_flops_are_those_that_are_computed(model_type: str) -> None:
    model = random_model(SAMPLES[model_type]()).requires_grad_(False)
    ids, positions = new_batch()
    predictor = Predictor(model, MASKED)

    def counted(at: Tensor | None) -> int:
        with FlopCounterMode(display=False) as counter:
            predictor(ids, at=at)
        return counter.get_total_flops()

    saved = counted(None) - counted(predictor.last_at(positions))
    whole, few = (forward_flops(model, LENGTH, 0.0, MASKED, share) for share in (1.0, TOKENS / LENGTH))
    attention = 4 * LENGTH * SIZES["hidden_size"] * (ROWS * (LENGTH - TOKENS))  # not counted by PyTorch on a CPU
    assert (whole - few) * ROWS * LENGTH == pytest.approx(saved + attention)


def test_queries_of_all_tokens_count_if_a_loss_reads_them() -> None:
    model, share = random_model(SAMPLES["bert"]()), TOKENS / LENGTH
    relations = Reads("masked", attention={-1})
    without, beside = (
        forward_flops(model, LENGTH, 0.0, reads, 1.0) - forward_flops(model, LENGTH, 0.0, reads, share)
        for reads in (MASKED, relations)
    )
    assert without - beside == pytest.approx((1 - share) * 2 * SIZES["hidden_size"] ** 2)


def test_a_family_that_runs_its_layers_whole_has_no_fewer_flops() -> None:
    model = random_model(SAMPLES["modernbert"]())
    assert forward_flops(model, LENGTH, 0.0, MASKED, 0.3) == forward_flops(model, LENGTH, 0.0, MASKED)


def test_layers_that_are_run_again_are_run_whole() -> None:
    model = new_model("bert").train()
    predictor = Predictor(model, MASKED)
    model.gradient_checkpointing_enable()
    assert predictor.recomputes
    assert predictor.last_at(new_batch()[1]) is None


def test_compiled_it_is_compiled_once() -> None:
    model = random_model(SAMPLES["bert"](hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    predictor = Predictor(model, MASKED)
    whole = Predictor(model, Reads("all"))
    predictor.compile(dynamic=False, backend="aot_eager")
    counters.clear()
    for _ in range(3):
        ids, positions = new_batch()
        found = predictor(ids, torch.bfloat16, predictor.last_at(positions))
        torch.testing.assert_close(
            found.hidden[-1], whole(ids, torch.bfloat16).last_at(positions), rtol=0.05, atol=0.05
        )
        found.hidden[-1].float().square().sum().backward()
    assert counters["stats"]["unique_graphs"] == 2  # of whole layers, and of the last one
