"""Batches of rows: padded by kind, and drawn so that all rows come once an epoch."""

import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from potstill.finetuning.rows import LengthGroupedSampler, Rows, sample_rows

INTEGERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64"]


def some_rows(lengths: list[int], dtype: str = "int32", **options: int) -> Rows:
    rng = np.random.default_rng(np.random.randint(2**31))  # other rows at every call
    tokens = {"input_ids": rng.integers(1, 100, sum(lengths)).astype(dtype)}
    values = {"labels": rng.integers(0, 5, len(lengths)), "soft": rng.normal(size=(len(lengths), 3)).astype("float32")}
    return Rows(tokens, values, np.array(lengths), **options)


@pytest.mark.parametrize("dtype", [*INTEGERS, "float16", "float32", "float64"])
def test_a_batch(dtype: str) -> None:
    lengths = [3, 1, 7, 5]
    rows = some_rows(lengths, dtype, multiple=1)
    rows.padding = {"input_ids": 9}
    batch = rows.__getitems__([2, 0, 1])
    ids = batch["input_ids"]
    expected = {"bool": torch.bool} | dict.fromkeys(INTEGERS[1:], torch.int64)
    assert ids.dtype == expected.get(dtype, getattr(torch, dtype))
    assert ids.shape == (3, 7)
    assert batch["attention_mask"].dtype == torch.int64
    starts = np.cumsum([0, *lengths])
    for row, place in enumerate([2, 0, 1]):
        column = rows.tokens["input_ids"][starts[place] : starts[place + 1]]
        np.testing.assert_array_equal(ids[row, : lengths[place]].numpy(), column)
        assert (ids[row, lengths[place] :] == torch.tensor(9).to(ids.dtype)).all()
        assert batch["attention_mask"][row].tolist() == [1] * lengths[place] + [0] * (7 - lengths[place])
        assert batch["labels"][row] == rows.values["labels"][place]
        np.testing.assert_array_equal(batch["soft"][row].numpy(), rows.values["soft"][place])


def test_labels_of_any_integer_type_are_what_torch_takes() -> None:
    rows = some_rows([2, 2])
    rows.values["labels"] = np.array([1, 0], np.int8)
    assert rows.__getitems__([0, 1])["labels"].dtype == torch.int64


def test_batches_are_as_long_as_a_multiple_but_no_longer_than_the_limit() -> None:
    rows = some_rows([3, 9, 20], multiple=8, limit=20)
    assert [rows.__getitems__([n])["input_ids"].shape[1] for n in range(3)] == [8, 16, 20]


def test_columns_mapped_from_files(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    rows = some_rows([3, 1])
    before = rows.__getitems__([1, 0])
    for columns in (rows.tokens, rows.values):
        for name, column in columns.items():
            np.save(tmp_path / f"{name}.npy", column)
            columns[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    after = rows.__getitems__([1, 0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    after["soft"].add_(1)  # a copy, not the file
    assert not recwarn.list


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_hold_every_row_once(batch_size: int) -> None:
    rows = some_rows([random.randint(1, 30) for _ in range(23)])
    seen, longest = [], []
    for places, batch in rows.batches(batch_size):
        assert len(places) == len(batch["input_ids"]) <= batch_size
        assert batch["attention_mask"].sum(1).tolist() == rows.lengths[places].tolist()
        seen += places.tolist()
        longest.append(batch["input_ids"].shape[1])
    assert sorted(seen) == list(range(23))
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize(("count", "batch_size"), [(100, 8), (64, 8), (5, 8), (8, 8), (9, 1), (1, 4)])
def test_draws(count: int, batch_size: int) -> None:
    lengths = np.array([random.randint(1, 30) for _ in range(count)])
    draws = LengthGroupedSampler(lengths, batch_size, seed=3)
    epochs = []
    for epoch in range(3):
        draws.set_epoch(epoch)
        epochs.append(list(draws))
        assert sorted(epochs[-1]) == list(range(count))
        assert lengths[epochs[-1][0]] == lengths.max()
    assert len(draws) == count
    draws.set_epoch(1)
    assert list(draws) == epochs[1]
    if count > 8:
        assert epochs[0] != epochs[1]
        other = LengthGroupedSampler(lengths, batch_size, seed=4)
        assert list(other) != epochs[0]


def test_rows_of_like_length_are_drawn_together() -> None:
    lengths = np.random.default_rng(np.random.randint(2**31)).integers(1, 128, 4000)
    order = list(LengthGroupedSampler(lengths, 32, seed=0))
    batches = [lengths[order[start : start + 32]] for start in range(0, 4000, 32)]
    read = sum(batch.max() * len(batch) for batch in batches)
    assert read < 1.15 * lengths.sum()
    firsts = [batch.mean() for batch in batches]
    assert firsts != sorted(firsts, reverse=True)


def test_samples_are_from_all_over_a_split() -> None:
    split = datasets.Dataset.from_dict({"label": [0] * 500 + [1] * 500})
    some = sample_rows(split, 100)["label"][:]
    assert len(some) == 100
    assert 30 < sum(some) < 70
    assert sample_rows(split, 100)["label"][:] == some
    assert sample_rows(split, None)["label"][:] == sample_rows(split, 5000)["label"][:] == split["label"][:]
