"""Every family serves models without a head as well."""

import pytest
import torch
from families_samples import CONFIGS, LENGTH, random_model

from potstill.student import Reads, family_of
from potstill.student.headless import layer_prefix

IDS = torch.randint(5, 101, (3, LENGTH), generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_family_runs_a_model_with_and_without_its_head(model_type: str) -> None:
    model = random_model(CONFIGS[model_type]())
    bare, family = model.base_model, family_of(model)
    assert list(family.layers(bare)) == list(family.layers(model))
    assert family.prefix_in(model) == family.layer_prefix == f"{model.base_model_prefix}.{family.prefix_in(bare)}"
    assert layer_prefix(bare) == family.prefix_in(bare)
    names = [name for name in bare.state_dict() if name.startswith(family.prefix_in(bare))]
    assert {name.removeprefix(family.prefix_in(bare)).partition(".")[0] for name in names} == {"0", "1", "2", "3"}
    assert torch.equal(family.embed(bare, IDS), family.embed(model, IDS))
    keep = Reads(hidden=frozenset({1, -1}), attention=frozenset({-1}))
    ours, theirs = family.encode(bare, IDS, keep), family.encode(model, IDS, keep)
    assert torch.equal(ours.hidden[1], theirs.hidden[1])
    assert torch.equal(ours.attention[-1].key, theirs.attention[-1].key)
    torch.testing.assert_close(ours.last, bare(IDS).last_hidden_state)
