"""Every pooling against a naive version of it, and what its config says."""

import numpy as np
import pytest
import torch

from potstill.errors import PotstillError
from potstill.sentences import MODES, Pooling

WHERE = "the module 1_Pooling of the teacher 'x'"


def naive(mode: str, states: np.ndarray) -> np.ndarray:
    """One text, (L, H) in float64, without padding."""
    length = len(states)
    if mode == "cls":
        return states[0]
    if mode == "lasttoken":
        return states[length - 1]
    if mode == "max":
        return np.array([max(column) for column in states.T])
    total = np.zeros(states.shape[1])
    weight = 0.0
    for place, state in enumerate(states, 1):
        factor = place if mode == "weightedmean" else 1
        total += factor * state
        weight += factor
    return total / (np.sqrt(weight) if mode == "mean_sqrt_len_tokens" else weight)


def sample(left: bool, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, list[slice]]:
    """(4, 7, 5) hidden states, their mask, and where each text lies; padding is on one side."""
    generator = torch.Generator().manual_seed(1 + left)
    hidden = torch.randn(4, 7, 5, generator=generator, dtype=torch.float64).to(dtype)
    lengths = [7, 1, 4, 6]
    places = [slice(7 - length, 7) if left else slice(0, length) for length in lengths]
    mask = torch.zeros(4, 7, dtype=torch.long)
    for row, place in zip(mask, places, strict=True):
        row[place] = 1
    return hidden, mask, places


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_what_it_says(mode: str, left: bool) -> None:
    hidden, mask, places = sample(left)
    expected = np.stack([naive(mode, row[place].numpy()) for row, place in zip(hidden, places, strict=True)])
    np.testing.assert_allclose(Pooling((mode,))(hidden, mask).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode: str) -> None:
    hidden, mask, places = sample(left=False)
    hidden.requires_grad_(True)
    wanted = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (Pooling((mode,))(hidden, mask) * wanted).sum().backward()
    step = 1e-6
    expected = np.zeros(hidden.shape)
    for row, place in enumerate(places):
        states = hidden[row, place].detach().numpy()
        for at in np.ndindex(states.shape):
            ahead, behind = states.copy(), states.copy()
            ahead[at] += step
            behind[at] -= step
            change = (naive(mode, ahead) - naive(mode, behind)) / (2 * step)
            expected[(row, at[0] + place.start, at[1])] = change @ wanted[row].numpy()
    assert hidden.grad is not None
    np.testing.assert_allclose(hidden.grad.numpy(), expected, atol=1e-8)


def test_several_modes_stand_side_by_side() -> None:
    hidden, mask, _ = sample(left=False)
    both = Pooling(("max", "cls"))
    assert both.width(5) == 10
    assert torch.equal(both(hidden, mask), torch.cat([Pooling(("max",))(hidden, mask), hidden[:, 0]], 1))


def test_sums_of_half_precision_are_made_in_float32() -> None:
    hidden = torch.full((1, 3000, 2), 40.0, dtype=torch.float16)  # the sum is beyond float16
    pooled = Pooling()(hidden, torch.ones(1, 3000))
    assert pooled.dtype == torch.float16
    assert torch.equal(pooled, torch.full((1, 2), 40.0, dtype=torch.float16))


@pytest.mark.parametrize("modes", [("mean",), ("cls", "mean"), ("mean", "cls"), tuple(reversed(MODES)), MODES])
def test_a_config_comes_back(modes: tuple[str, ...]) -> None:
    config = Pooling(modes).to_config(7)
    assert config["word_embedding_dimension"] == 7
    assert Pooling.from_config(config, WHERE) == Pooling(modes)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_of_the_future": False, "pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "max", "include_prompt": True}, ("max",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
    ],
)
def test_configs_of_every_version(config: dict[str, object], modes: tuple[str, ...]) -> None:
    assert Pooling.from_config(config, WHERE).modes == modes


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"pooling_mode_attention": True}, r"of an unknown kind \(pooling_mode_attention\)"),
        ({"pooling_mode": "attention"}, r"of an unknown kind \(attention\)"),
        ({"pooling_mode": ["mean", {"a": 1}]}, "of an unknown kind"),
        ({"pooling_mode": []}, "of an unknown kind"),
        ({"pooling_mode": "mean", "include_prompt": False}, "leaves the prompt out"),
    ],
)
def test_what_is_not_computed_is_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(PotstillError, match=says) as caught:
        Pooling.from_config(config, WHERE)
    assert str(caught.value).startswith(WHERE)


@pytest.mark.parametrize("modes", [(), ("sum",)])
def test_an_unknown_mode(modes: tuple[str, ...]) -> None:
    with pytest.raises(PotstillError, match="is unknown: use cls"):
        Pooling(modes)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_sentence_transformers_pools_alike(mode: str, left: bool) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    hidden, mask, _ = sample(left, torch.float32)
    theirs = modules.Pooling(5, mode)({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(Pooling((mode,))(hidden, mask), theirs)
