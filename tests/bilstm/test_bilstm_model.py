"""The BiLSTM against a naive version in float64, and what it does with padding and with pairs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, pipeline
from transformers.models.bert import BertTokenizer

from potstill.bilstm.config import BiLSTMConfig
from potstill.bilstm.model import BiLSTMForSequenceClassification, concatenate_compare
from potstill.bilstm.new import STANDARD_DEVIATION, reduced

SEP = 3
SIZES: dict[str, Any] = {"vocab_size": 40, "embedding_size": 6, "hidden_size": 5, "intermediate_size": 7}


def new(seed: int | None = None, **options: Any) -> BiLSTMForSequenceClassification:
    config = BiLSTMConfig(**SIZES, num_labels=3, sep_token_id=SEP, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.seed() if seed is None else seed)
        return BiLSTMForSequenceClassification(config).eval()


def naive_direction(inputs: list[Tensor], lstm: Any) -> Tensor:
    """The last state of one LSTM over a list of vectors, gate by gate."""
    weights = [getattr(lstm, name).double() for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    hidden = cell = torch.zeros(lstm.hidden_size, dtype=torch.float64)
    for vector in inputs:
        gates = weights[0] @ vector + weights[1] @ hidden + weights[2] + weights[3]
        enter, forget, new_cell, leave = gates.chunk(4)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new_cell)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
    return hidden


def naive_text(model: BiLSTMForSequenceClassification, ids: list[int]) -> Tensor:
    encoder = model.encoder
    vectors = [torch.cat([encoder.static.weight[i], encoder.trained.weight[i]]).double() for i in ids]
    lstm = encoder.lstm
    return torch.cat([naive_direction(vectors, lstm.forwards), naive_direction(vectors[::-1], lstm.backwards)])


def naive_logits(model: BiLSTMForSequenceClassification, *texts: list[int]) -> Tensor:
    vectors = [naive_text(model, ids) for ids in texts]
    vector = vectors[0]
    if len(vectors) == 2:
        a, b = vectors
        vector = torch.stack(
            [*a, *b, *(x * y for x, y in zip(a, b, strict=True)), *(abs(x - y) for x, y in zip(a, b, strict=True))]
        )
    hidden = (model.dense.weight.double() @ vector + model.dense.bias.double()).clamp(min=0)
    return model.classifier.weight.double() @ hidden + model.classifier.bias.double()


def padded(rows: list[list[int]], side: str = "right") -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows)) + 2
    ids = torch.full((len(rows), longest), 9)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        places = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[number, places], mask[number, places] = torch.tensor(row), 1
    return ids, mask


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts(side: str) -> None:
    model = new()
    rows = [torch.randint(4, 40, (length,)).tolist() for length in (7, 1, 4, 12)]
    ids, mask = padded(rows, side)
    logits = model(ids, mask).logits
    wanted = torch.stack([naive_logits(model, row) for row in rows])
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(logits.square().sum(), [p for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    exact = torch.autograd.grad(wanted.square().sum(), [p for p in model.parameters() if p.requires_grad])
    for mine, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("types", [True, False])
def test_pairs(types: bool) -> None:
    model = new(pairs=True, type_vocab_size=2 if types else 1)
    firsts = [[*torch.randint(4, 40, (length,)).tolist(), SEP] for length in (5, 1, 8)]
    seconds = [[*torch.randint(4, 40, (length,)).tolist(), SEP] for length in (2, 9, 6)]
    ids, mask = padded([a + b for a, b in zip(firsts, seconds, strict=True)])
    given = torch.zeros_like(ids)
    for number, (a, b) in enumerate(zip(firsts, seconds, strict=True)):
        given[number, len(a) : len(a) + len(b)] = 1
    logits = model(ids, mask, given if types else None).logits
    wanted = torch.stack([naive_logits(model, a, b) for a, b in zip(firsts, seconds, strict=True)])
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_pair_without_a_second_text() -> None:
    model = new(pairs=True)
    ids, mask = padded([[5, 6, 7]])
    first = naive_text(model, [5, 6, 7])
    vector = torch.cat([first, torch.zeros_like(first), torch.zeros_like(first), first.abs()])
    hidden = (model.dense.weight.double() @ vector + model.dense.bias.double()).clamp(min=0)
    wanted = model.classifier.weight.double() @ hidden + model.classifier.bias.double()
    torch.testing.assert_close(model(ids, mask).logits[0].double(), wanted, rtol=1e-5, atol=1e-6)


def test_concatenate_compare() -> None:
    a, b = torch.randn(2, 4, 6)
    found = concatenate_compare(a, b)
    for row in range(4):
        x, y = a[row].double(), b[row].double()
        wanted = [*x, *y, *(p * q for p, q in zip(x, y, strict=True)), *(abs(p - q) for p, q in zip(x, y, strict=True))]
        torch.testing.assert_close(found[row].double(), torch.stack(wanted), rtol=1e-6, atol=1e-7)


def test_padding_changes_nothing() -> None:
    model = new()
    row = torch.randint(4, 40, (6,)).tolist()
    alone = model(torch.tensor([row]), torch.ones(1, 6, dtype=torch.long)).logits[0]
    ids, mask = padded([row, torch.randint(4, 40, (15,)).tolist()])
    torch.testing.assert_close(model(ids, mask).logits[0], alone, atol=1e-6, rtol=0)
    ids[0, 6:] = 17
    torch.testing.assert_close(model(ids, mask).logits[0], alone, atol=1e-6, rtol=0)


def test_autocast_changes_nothing() -> None:
    model = new()
    ids, mask = padded([[5, 6, 7], [8, 9]])
    with torch.autocast("cpu", torch.bfloat16):
        found = model(ids, mask).logits
    assert found.dtype == torch.float32
    assert torch.equal(found, model(ids, mask).logits)


def test_the_static_channel_is_never_trained(tmp_path: Path) -> None:
    model = new()
    with torch.no_grad():
        model.dense.bias.fill_(10)  # few units could all be below the ReLU's 0 by chance, and then nothing would learn
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids, mask = padded([[5, 6, 7], [8, 9]])
    model(ids, mask).logits.square().sum().backward()
    optimizer.step()
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {"encoder.static.weight"}
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).train()
    assert [name for name, p in again.named_parameters() if not p.requires_grad] == ["encoder.static.weight"]
    model.eval(), again.eval()
    assert torch.equal(model(ids, mask).logits, again(ids, mask).logits)


def test_the_seed_draws_all_but_embeddings_of_another_model() -> None:
    def drawn(seed: int, **options: Any) -> dict[str, Tensor]:
        model = new(5, **options)
        model.draw(seed)
        return model.state_dict()

    one, again, other = (drawn(seed, embeddings_from="a") for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    same = {name for name in one if torch.equal(one[name], other[name])}
    assert same == {"encoder.static.weight", "encoder.trained.weight"}
    assert not any(torch.equal(tensor, drawn(2)[name]) for name, tensor in drawn(1).items())


def test_embeddings_are_reduced_by_their_principal_components() -> None:
    table = torch.randn(50, 8) @ torch.diag(torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.2, 0.1, 0.05])) + 4
    found = reduced(table, 3).double()
    assert found.shape == (50, 3)
    exact = table.double() - table.double().mean(0)
    left, values, _ = torch.linalg.svd(exact, full_matrices=False)
    wanted = left[:, :3] * values[:3]
    wanted = wanted * (STANDARD_DEVIATION / wanted.std())
    for column in range(3):
        sign = math.copysign(1, float(found[0, column] * wanted[0, column]))
        torch.testing.assert_close(found[:, column], sign * wanted[:, column], rtol=1e-4, atol=1e-5)
    whole = reduced(table, 8)
    torch.testing.assert_close(whole / whole.std(), table / table.std(), rtol=1e-5, atol=1e-5)


def test_pipeline(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(35))]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=64)
    model = new(pairs=True, type_vocab_size=2, id2label={0: "no", 1: "yes", 2: "perhaps"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    read = pipeline("text-classification", model=str(tmp_path), top_k=None)
    said = {entry["label"]: entry["score"] for entry in read({"text": "w3 w5", "text_pair": "w9"})}
    inputs = tokenizer("w3 w5", "w9", return_tensors="pt")
    wanted = model(**inputs).logits.softmax(-1)[0]
    assert said == pytest.approx(dict(zip(("no", "yes", "perhaps"), wanted.tolist(), strict=True)), rel=1e-4)
