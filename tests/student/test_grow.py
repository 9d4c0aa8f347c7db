import copy
from collections.abc import Callable

import pytest
import torch
from transformers import BertForMaskedLM, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student import build_student, grow, grow_optimizer_state

MakeBert = Callable[..., BertForMaskedLM]
LAYERS = {"bert": "bert.encoder.layer.", "distilbert": "distilbert.transformer.layer."}


@pytest.fixture(params=["bert", "distilbert"])
def shallow(request: pytest.FixtureRequest, make_bert: MakeBert) -> PreTrainedModel:
    bert = make_bert(num_hidden_layers=3)
    return bert if request.param == "bert" else build_student(bert, 3)


def original_of(name: str, model: PreTrainedModel) -> str:
    """By hand: layer i of seven is a copy of layer 0, 1, 2, 0, 1, 2, 0."""
    prefix = LAYERS[model.config.model_type]
    for layer, source in enumerate([0, 1, 2, 0, 1, 2, 0]):
        if name.startswith(f"{prefix}{layer}."):
            return name.replace(f"{prefix}{layer}.", f"{prefix}{source}.", 1)
    return name


@pytest.mark.parametrize("depth", [3, 4, 6, 7])
def test_every_tensor_is_the_right_copy(shallow: PreTrainedModel, depth: int) -> None:
    before = copy.deepcopy(shallow.state_dict())
    grown = grow(shallow, depth)
    assert type(grown) is type(shallow)
    assert (shallow.config.num_hidden_layers, grown.config.num_hidden_layers) == (3, depth)
    originals = {original_of(name, shallow) for name in grown.state_dict()}
    assert originals == set(before)
    for name, tensor in grown.state_dict().items():
        assert torch.equal(tensor, before[original_of(name, shallow)]), name
    for tensor in grown.state_dict().values():
        tensor.zero_()
    for name, tensor in shallow.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_copied_layers_are_independent(shallow: PreTrainedModel) -> None:
    names = [name for name, _ in grow(shallow, 6).named_parameters()]
    assert len(names) == len(set(names))
    pointers = [parameter.data_ptr() for parameter in grow(shallow, 6).parameters()]
    assert len(pointers) == len(set(pointers))


@pytest.mark.parametrize("tied", [True, False])
def test_ties_precision_mode_and_random_state(make_bert: MakeBert, tied: bool) -> None:
    model = make_bert(dtype=torch.float64, tie_word_embeddings=tied).train()
    random_state = torch.get_rng_state()
    grown = grow(model, 8)
    assert torch.equal(torch.get_rng_state(), random_state)
    predictions = grown.cls.predictions
    assert (predictions.decoder.weight is grown.bert.embeddings.word_embeddings.weight) == tied
    assert (predictions.decoder.bias is predictions.bias) == tied
    assert grown.dtype == torch.float64
    assert grown.training
    assert not grow(model.eval(), 8).training


def test_equal_depth_computes_the_same(shallow: PreTrainedModel, input_ids: torch.Tensor) -> None:
    assert torch.equal(grow(shallow, 3)(input_ids).logits, shallow(input_ids).logits)


def test_shrinking_is_refused(shallow: PreTrainedModel) -> None:
    with pytest.raises(PotstillError, match="a model of 3 layers cannot grow to 2"):
        grow(shallow, 2)


def parameter_groups(model: PreTrainedModel) -> list[list[str]]:
    """As trainers group them: with and without weight decay, the second in reverse so that order matters."""
    names = [name for name, _ in model.named_parameters()]
    plain = [name for name in names if name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name]
    return [[name for name in names if name not in plain], plain[::-1]]


def adamw(model: PreTrainedModel, groups: list[list[str]], **options: object) -> torch.optim.AdamW:
    parameters = dict(model.named_parameters())
    decays = (0.1, 0.0)
    return torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in names], "weight_decay": decay}
            for names, decay in zip(groups, decays, strict=True)
        ],
        lr=1e-3,
        betas=(0.9, 0.98),
        **options,
    )


def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, input_ids: torch.Tensor) -> None:
    model(input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_optimizers_moments_are_copied(shallow: PreTrainedModel, input_ids: torch.Tensor, amsgrad: bool) -> None:
    old_groups = parameter_groups(shallow)
    old = adamw(shallow, old_groups, amsgrad=amsgrad)
    for _ in range(3):
        step(shallow, old, input_ids)
    old.param_groups[0]["lr"] = 5e-4
    before = copy.deepcopy(old.state_dict())

    grown = grow(shallow, 7)
    new_groups = parameter_groups(grown)
    new = adamw(grown, new_groups, amsgrad=amsgrad)
    new.load_state_dict(grow_optimizer_state(old.state_dict(), old_groups, new_groups, shallow))

    assert [group["lr"] for group in new.param_groups] == [5e-4, 1e-3]
    assert [group["weight_decay"] for group in new.param_groups] == [0.1, 0.0]
    old_parameters = dict(shallow.named_parameters())
    for name, parameter in grown.named_parameters():
        expected = old.state[old_parameters[original_of(name, shallow)]]
        assert set(new.state[parameter]) == set(expected) >= {"step", "exp_avg", "exp_avg_sq"}
        for key, value in expected.items():
            assert torch.equal(new.state[parameter][key], value), (name, key)
    assert any(state["exp_avg"].any() for state in new.state.values())

    # Two copies of one layer, and the old optimizer, must not go on writing into the same moments.
    step(grown, new, input_ids)
    for index, moments in old.state_dict()["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, before["state"][index][key])
    assert all(state["step"] == 4 for state in new.state.values())


def test_names_behind_a_wrapper_and_names_in_the_state(shallow: PreTrainedModel, input_ids: torch.Tensor) -> None:
    old = torch.optim.AdamW(shallow.named_parameters())
    step(shallow, old, input_ids)
    grown = grow(shallow, 6)
    old_names = [[f"model.{name}" for name, _ in shallow.named_parameters()]]
    new_names = [[f"model.{name}" for name, _ in grown.named_parameters()]]
    state = grow_optimizer_state(old.state_dict(), old_names, new_names, shallow)
    assert state["param_groups"][0]["param_names"] == new_names[0]
    assert len(state["state"]) == len(new_names[0])


def test_parameters_without_state_stay_without(shallow: PreTrainedModel) -> None:
    groups = parameter_groups(shallow)
    grown = grow(shallow, 6)
    state = grow_optimizer_state(adamw(shallow, groups).state_dict(), groups, parameter_groups(grown), shallow)
    assert state["state"] == {}
    adamw(grown, parameter_groups(grown)).load_state_dict(state)


def test_names_that_do_not_fit(shallow: PreTrainedModel) -> None:
    groups = parameter_groups(shallow)
    state = adamw(shallow, groups).state_dict()
    with pytest.raises(ValueError, match="old_names does not name"):
        grow_optimizer_state(state, [groups[0], groups[1][:-1]], groups, shallow)
    with pytest.raises(ValueError, match="2 parameter groups and new_names has 1"):
        grow_optimizer_state(state, groups, [groups[0]], shallow)
    with pytest.raises(ValueError, match=r"original of classifier\.weight"):
        grow_optimizer_state(state, groups, [["classifier.weight"], []], shallow)
