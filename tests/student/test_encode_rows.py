"""Several texts in a block: each is encoded as if it were alone, forward and backward."""

from collections.abc import Iterator

import pytest
import torch
from families_samples import CONFIGS
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from potstill.student import Reads, Rows, family_of
from potstill.student.rows import ATTENTION

PAD, FIRST, LAST = 0, 2, 3
LENGTHS = [[6, 5, 4], [19], [3, 3, 3, 10], [9]]
"""Lengths of the texts in each block of 19 tokens; the rest is padding. Slots: 4."""
READS_ROWS = ["bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra"]


def model_of(model_type: str, seed: int = 1) -> PreTrainedModel:
    """A model without a head in float64, every parameter of it random."""
    config = CONFIGS[model_type](pad_token_id=PAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def blocks(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.full((len(LENGTHS), 19), PAD)
    for row, lengths in zip(rows, LENGTHS, strict=True):
        start = 0
        for length in lengths:
            row[start : start + length] = torch.randint(4, 101, (length,), generator=generator)
            row[start], row[start + length - 1] = FIRST, LAST
            start += length
    return rows


def places() -> Iterator[tuple[int, int, slice]]:
    """The number of the block, the number of the text in it, and where it lies."""
    for block, lengths in enumerate(LENGTHS):
        for number, length in enumerate(lengths):
            start = sum(lengths[:number])
            yield block, number, slice(start, start + length)


def test_texts_are_found() -> None:
    rows = Rows.of(blocks(0), FIRST, PAD, 4, per_block=2.5)
    texts, positions = torch.full((4, 19), 16), torch.zeros(4, 19, dtype=torch.long)
    filled, inside = torch.zeros(16, dtype=torch.bool), torch.zeros(4, 19, dtype=torch.bool)
    for block, number, place in places():
        texts[block, place] = 4 * block + number
        positions[block, place] = torch.arange(place.stop - place.start)
        filled[4 * block + number] = True
        inside[block, place] = True
    assert torch.equal(rows.texts, texts)
    assert torch.equal(rows.positions[inside], positions[inside])
    assert (rows.positions < 19).all()  # at padding too: a model looks up its embedding
    assert torch.equal(rows.filled, filled)
    assert torch.equal(rows.inside, inside)
    values = torch.rand(16, dtype=torch.float64)
    values[~filled] = torch.nan
    torch.testing.assert_close(rows.mean_over_texts(values), values[filled].sum() / (4 * 2.5))
    of_tokens = torch.rand(4, 19, dtype=torch.float64)
    torch.testing.assert_close(rows.mean_over_tokens(of_tokens), of_tokens[inside].sum() / (4 * 19))


@pytest.mark.parametrize("model_type", READS_ROWS)
def test_each_text_is_encoded_as_if_it_were_alone(model_type: str) -> None:
    model = model_of(model_type)
    ids = blocks(seed=len(model_type))
    generator = torch.Generator().manual_seed(7)
    wanted = torch.randn(*ids.shape, 24, generator=generator, dtype=torch.float64)
    reads = Reads(hidden=frozenset({0, 2, -1}), attention=frozenset({1}))

    alone = {block: {} for block in range(len(LENGTHS))}
    loss = torch.zeros((), dtype=torch.float64)
    for block, number, place in places():
        hidden = model(ids[block : block + 1, place], output_hidden_states=True).hidden_states
        alone[block][number] = hidden
        loss = loss + (hidden[-1][0] * wanted[block, place]).sum() + hidden[1][0].square().sum()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    model.set_attn_implementation(ATTENTION)
    rows = Rows.of(ids, FIRST, PAD, 4)
    states = family_of(model).encode_rows(model, ids, rows, reads)
    for block, number, place in places():
        for layer in (0, 2, -1):
            theirs = alone[block][number][layer + 1 if layer >= 0 else -1][0]
            torch.testing.assert_close(states.hidden[layer][block, place], theirs, rtol=1e-9, atol=1e-11)
    loss = (states.last * wanted)[rows.inside].sum() + states.hidden[0][rows.inside].square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-10, msg=name)
    assert states.attention[1].query.shape == (4, 19, 24)


@pytest.mark.parametrize("model_type", READS_ROWS)
def test_a_model_with_this_attention_still_runs_as_usual(model_type: str) -> None:
    model, ids = model_of(model_type), blocks(seed=3)[:, :9]
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 1])[:, None]).long()
    usual = [model(ids).last_hidden_state, model(ids, attention_mask=mask).last_hidden_state]
    model.set_attn_implementation(ATTENTION)
    ours = [model(ids).last_hidden_state, model(ids, attention_mask=mask).last_hidden_state]
    torch.testing.assert_close(ours[0], usual[0])
    torch.testing.assert_close(ours[1][mask.bool()], usual[1][mask.bool()])


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_family_reads_rows_only_if_it_says_so(model_type: str) -> None:
    assert family_of(CONFIGS[model_type]()).reads_rows == (model_type in READS_ROWS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_over_texts_of_different_lengths(dtype: torch.dtype) -> None:
    model = model_of("bert")
    ids = blocks(seed=4)
    model.set_attn_implementation(ATTENTION)
    rows = Rows.of(ids, FIRST, PAD, 4)
    expected = family_of(model).encode_rows(model, ids, rows).last
    model, ids = model.to("cuda", dtype), ids.cuda()
    rows = Rows.of(ids, FIRST, PAD, 4)
    assert rows.mask(dtype).dim() == (4 if dtype is torch.float32 else 1)
    found = family_of(model).encode_rows(model, ids, rows).last
    error = (found.double().cpu() - expected)[rows.inside.cpu()].abs().max()
    assert error < {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float32: 1e-4}[dtype]
