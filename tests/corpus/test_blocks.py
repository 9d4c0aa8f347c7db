import errno
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from potstill.corpus.blocks import Blocks, ShuffledSampler
from potstill.corpus.packing import BlockWriter
from potstill.corpus.tokenizer import TokenizerSpec
from potstill.errors import PotstillError

FRAMED = TokenizerSpec("", 300, prefix=7, suffix=8, separator=8, special_ids=[], unknown=None)
BARE = TokenizerSpec("", 70_000, prefix=None, suffix=None, separator=8, special_ids=[], unknown=None)


def write(path: Path, spec: TokenizerSpec, block_size: int, stream: np.ndarray, pieces: int) -> BlockWriter:
    with BlockWriter(path, spec, block_size) as writer:
        for piece in np.array_split(stream, pieces):
            writer.add(piece)
        writer.finish()
    return writer


def naive_blocks(spec: TokenizerSpec, block_size: int, stream: list[int]) -> list[list[int]]:
    frame = ([] if spec.prefix is None else [spec.prefix]), ([] if spec.suffix is None else [spec.suffix])
    size = block_size - len(frame[0]) - len(frame[1])
    contents = [stream[start : start + size] for start in range(0, len(stream), size)]
    return [frame[0] + content + frame[1] for content in contents if len(content) == size]


@pytest.mark.parametrize("spec", [FRAMED, BARE], ids=["framed", "bare"])
@pytest.mark.parametrize("length", [0, 5, 6, 997, 20_000])
def test_blocks_are_the_stream_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: TokenizerSpec, length: int
) -> None:
    monkeypatch.setattr("potstill.corpus.packing.TOKENS_PER_RECORD_BATCH", 1024)  # several record batches
    stream = np.random.default_rng(length).integers(0, spec.vocab_size, length).astype(spec.dtype)
    writer = write(tmp_path / "a.arrow", spec, 8, stream, pieces=13)
    expected = naive_blocks(spec, 8, stream.tolist())

    blocks = Blocks(tmp_path / "a.arrow")
    assert (len(blocks), blocks.block_size) == (len(expected), 8)
    assert [token for piece in blocks.pieces() for token in piece.tolist()] == [
        token for row in expected for token in row
    ]
    assert [item["input_ids"].tolist() for item in blocks] == expected
    frame = (spec.prefix is not None) + (spec.suffix is not None)
    assert (writer.tokens, writer.blocks) == (length, len(expected))
    assert writer.dropped_tokens == length - len(expected) * (8 - frame)
    counts = np.bincount(stream[: length - writer.dropped_tokens], minlength=spec.vocab_size)
    assert (writer.counts == counts).all()

    mapped = datasets.Dataset.from_file(str(tmp_path / "a.arrow"))
    assert mapped["input_ids"][:] == expected
    assert mapped.features["input_ids"] == datasets.List(datasets.Value(spec.dtype.name), length=8)


def test_the_file_depends_on_the_stream_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.corpus.packing.TOKENS_PER_RECORD_BATCH", 1024)
    stream = np.random.default_rng(0).integers(0, 300, 9_000).astype(np.uint16)
    files = []
    for pieces in (1, 7, 4000):
        write(tmp_path / "a.arrow", FRAMED, 8, stream, pieces)
        files.append((tmp_path / "a.arrow").read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    write(tmp_path / "a.arrow", FRAMED, 8, np.arange(100 * 6, dtype=np.uint16) % 300, pieces=1)
    return Blocks(tmp_path / "a.arrow")


def test_a_draw_is_an_epoch_and_a_block(blocks: Blocks) -> None:
    batch = blocks.__getitems__([5, 305, 99])
    assert batch["input_ids"].shape == (3, 8)
    assert batch["input_ids"].dtype == batch["sample_index"].dtype == torch.int64
    assert batch["sample_index"].tolist() == [5, 305, 99]
    assert batch["input_ids"][0].tolist() == batch["input_ids"][1].tolist() == [7, 30, 31, 32, 33, 34, 35, 8]
    one = blocks[305]
    assert one["sample_index"].shape == ()
    assert one["sample_index"] == 305
    assert one["input_ids"].tolist() == batch["input_ids"][1].tolist()
    with pytest.raises(IndexError):
        blocks[-1]


def test_blocks_survive_pickling_by_mapping_the_file_again(blocks: Blocks) -> None:
    data = pickle.dumps(blocks)
    assert len(data) < 1000
    assert pickle.loads(data)[42]["input_ids"].tolist() == blocks[42]["input_ids"].tolist()


def as_it_is(batch: Any) -> Any:
    """A lambda could not be sent to a worker that is not forked."""
    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_whole_batches(blocks: Blocks, workers: int) -> None:
    draws = ShuffledSampler(len(blocks), 8, seed=1)
    draws.set_epoch(2)
    loader = DataLoader(blocks, batch_size=4, sampler=draws, collate_fn=as_it_is, num_workers=workers)
    batches = list(loader)
    assert len(batches) == 24
    assert torch.cat([batch["sample_index"] for batch in batches]).tolist() == list(draws)
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert ids.tolist() == [blocks[sample_index]["input_ids"].tolist() for sample_index in draws]


def test_a_damaged_file_is_an_error(tmp_path: Path, blocks: Blocks) -> None:
    blocks.path.write_bytes(blocks.path.read_bytes()[:600])
    with pytest.raises(PotstillError, match=r"a\.arrow is damaged \(.*prepare the corpus again"):
        Blocks(blocks.path)
    blocks.path.unlink()
    with pytest.raises(PotstillError, match=r"a\.arrow is missing: prepare the corpus again"):
        Blocks(blocks.path)


def test_a_turned_bit_in_the_head_of_a_file_is_told_or_harmless(blocks: Blocks) -> None:
    whole = blocks.path.read_bytes()
    told = []
    for byte in range(0, 700, 3):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << byte % 8
        blocks.path.write_bytes(damaged)
        try:
            read = Blocks(blocks.path)
            assert sum(len(piece) for piece in read.pieces()) == len(read) * read.block_size
        except PotstillError as error:
            told.append(str(error))
    assert len(told) > 20
    assert all("a.arrow is damaged" in message for message in told)


def test_a_file_of_anything_else_is_an_error(tmp_path: Path) -> None:
    ids = pa.array([1, 2], pa.int64())
    for column in (ids, pa.FixedSizeListArray.from_arrays(ids, 2), pa.array(["text"])):
        table = pa.table({"input_ids": column})
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(PotstillError, match=r"a\.arrow is damaged"):
            Blocks(tmp_path / "a.arrow")


def test_a_file_that_may_not_be_read_is_not_called_damaged(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(pa, "memory_map", denied)
    with pytest.raises(PotstillError, match=r"a\.arrow cannot be read \(Permission denied\): .*permissions") as raised:
        Blocks(blocks.path)
    assert "prepare" not in str(raised.value)


def test_each_epoch_is_a_permutation_cut_to_whole_steps() -> None:
    draws = ShuffledSampler(103, 10, seed=5)
    epochs = []
    for epoch in (0, 1):
        draws.set_epoch(epoch)
        order = list(draws)
        assert len(order) == len(draws) == 100
        assert len(set(order)) == 100
        assert min(order) >= epoch * 103
        assert max(order) < (epoch + 1) * 103
        epochs.append([sample_index - epoch * 103 for sample_index in order])
    assert epochs[0] != epochs[1]
    assert set(epochs[0]) != set(epochs[1])  # not always the same blocks are left out


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    used = ShuffledSampler(50, 10, seed=5)
    used.set_epoch(3)
    list(used)
    used.set_epoch(1)
    fresh = ShuffledSampler(50, 10, seed=5)
    fresh.set_epoch(1)
    other = ShuffledSampler(50, 10, seed=6)
    other.set_epoch(1)
    assert list(used) == list(fresh)
    assert list(fresh) != list(other)
    # The global batch moves only the cut.
    wide = ShuffledSampler(50, 40, seed=5)
    wide.set_epoch(1)
    assert list(fresh)[:40] == list(wide)


def test_fewer_blocks_than_a_step_takes_is_an_error() -> None:
    with pytest.raises(PotstillError, match="The corpus has 9 blocks, fewer than the 10 of one optimiser step"):
        ShuffledSampler(9, 10, seed=0)
