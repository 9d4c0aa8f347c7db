import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_samples import random_documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from potstill.corpus import tokenise as room
from potstill.corpus import worker
from potstill.corpus.tokenise import Batch, batch_bytes_for, batched, tokenise
from potstill.corpus.tokenizer import TokenizerSpec
from potstill.errors import PotstillError


def naive_ids(tokenizer: BertTokenizer, document: str) -> list[int]:
    return tokenizer(document, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def streams(documents: list[str], spec: TokenizerSpec, num_proc: int, batch_bytes: int) -> tuple[list[int], list[int]]:
    batches = batched((document.encode() for document in documents), batch_bytes)
    results = list(tokenise(batches, spec, seed=3, validation_fraction=0.3, num_proc=num_proc))
    train = np.concatenate([tokens.train for tokens in results])
    validation = np.concatenate([tokens.validation for tokens in results])
    assert train.dtype == validation.dtype == spec.dtype
    return train.tolist(), validation.tolist()


@pytest.mark.parametrize(("num_proc", "batch_bytes"), [(1, 1), (3, 700)])
def test_streams_are_the_documents_in_order_each_closed_by_the_separator(
    tokenizer: BertTokenizer, num_proc: int, batch_bytes: int
) -> None:
    documents = [*random_documents(200, seed=4), "\u200b"]  # the last one comes to nothing
    expected: tuple[list[int], list[int]] = [], []
    for number, document in enumerate(documents[:-1]):
        split = expected[worker.is_held_out(number, 3, 0.3)]
        split += [*naive_ids(tokenizer, document), tokenizer.sep_token_id]
    assert expected[0]
    assert expected[1]
    assert streams(documents, TokenizerSpec.of(tokenizer, "it"), num_proc, batch_bytes) == expected


def test_truncation_and_padding_of_the_tokenizer_are_ignored(tokenizer: BertTokenizer) -> None:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    cut = PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map)
    documents = ["cat", "the cat sat on the mat"]
    assert streams(documents, TokenizerSpec.of(cut, "it"), 1, 100) == streams(
        documents, TokenizerSpec.of(tokenizer, "it"), 1, 100
    )


def test_special_tokens_spelt_out_in_the_text_stay_text(tokenizer: BertTokenizer) -> None:
    train, validation = streams(["cat [SEP] [MASK] [CLS] [PAD] cat"], TokenizerSpec.of(tokenizer, "it"), 1, 100)
    ids = train + validation
    assert ids.pop() == tokenizer.sep_token_id
    assert not set(ids) & {tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.cls_token_id, 0}


@pytest.mark.parametrize("unknown", ["[UNK]", None])
def test_special_tokens_in_the_vocabulary_of_the_model_itself_are_never_found_in_text(unknown: str | None) -> None:
    # Split at white space alone, "[SEP]" is a word that the model knows.
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "cat": 3}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", unk_token=unknown
    )
    train, validation = streams(["cat [SEP] cat"], TokenizerSpec.of(tokenizer, "it"), 1, 100)
    assert train + validation == ([3, 0, 3, 2] if unknown else [3, 3, 2])


def byte_level_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_a_tokenizer_without_cls_and_sep_separates_by_its_end_of_text_token() -> None:
    end = "<|endoftext|>"
    spec = TokenizerSpec.of(byte_level_tokenizer(bos_token=end, eos_token=end, unk_token=end), "gpt")
    assert (spec.prefix, spec.suffix, spec.separator, spec.vocab_size, spec.dtype) == (None, None, 256, 257, np.uint16)
    train, validation = streams(["ab", f"a{end}"], spec, 1, 100)
    ids = np.array(train + validation)
    assert (ids == 256).sum() == 2
    assert len(ids) == 2 + 1 + 1 + len(end) + 1


def test_a_tokenizer_without_any_separator_is_refused() -> None:
    with pytest.raises(PotstillError, match=r"neither .* nor an end-of-text token"):
        TokenizerSpec.of(byte_level_tokenizer(), "it")


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(PotstillError, match="not a fast one"):
        TokenizerSpec.of(object(), "it")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_ids_take_the_smallest_type_that_holds_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert TokenizerSpec("", vocab_size, None, None, 0, [], None).dtype == np.dtype(dtype)


def test_batches_hold_all_documents_in_order_and_at_least_their_bytes() -> None:
    documents = [b"x" * size for size in (3, 5, 1, 20, 1, 1)]
    batches = list(batched(documents, 8))
    assert batches == [Batch(0, documents[:2]), Batch(2, documents[2:4]), Batch(4, documents[4:])]


def test_batches_shrink_with_the_memory_limit_and_the_processes() -> None:
    assert batch_bytes_for(1024, 2) == batch_bytes_for(10**6, 1) == 2**18
    assert batch_bytes_for(64, 8) < batch_bytes_for(64, 4) < 2**18
    assert batch_bytes_for(1, 64) == 2**14


def test_a_worker_that_dies_is_an_error_and_no_hang(tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    exchange = room._Worker.exchange

    def die(self: Any, batch: Batch) -> Any:
        started.append(self.process)
        self.process.kill()
        return exchange(self, batch)

    monkeypatch.setattr(room._Worker, "exchange", die)
    batches = (Batch(number, [b"cat"] * 1000) for number in range(50))
    with pytest.raises(PotstillError, match=r"killed by signal 9.*lower --num_proc"):
        list(tokenise(batches, TokenizerSpec.of(tokenizer, "it"), 0, 0.0, num_proc=2))
    assert all(process.poll() is not None for process in started)


def test_what_the_tokenizer_cannot_do_is_an_error_with_its_own_words() -> None:
    backend = Tokenizer(models.WordPiece({"[CLS]": 0, "[SEP]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]")
    with pytest.raises(PotstillError, match=r"failed on document 2 of the text \(3 bytes, 'dog'\): .*UNK"):
        streams(["", "dog", "cat"], TokenizerSpec.of(tokenizer, "it"), 1, 100)


def complaining_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, end: str) -> None:
    """Put a worker in the place of the real one that prints something and ends."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys\nsys.stdin.buffer.read(1)\nprint({said!r}, file=sys.stderr, flush=True)\n{end}\n"
    )
    monkeypatch.setattr(room.worker, "__file__", str(script))


@pytest.mark.parametrize(
    ("said", "end", "message"),
    [
        (
            "memory allocation of 8589934592 bytes failed",
            "os.abort()",
            "was killed by signal 6, most likely for lack of memory, at documents 1 to 2 of the text, "
            "the longest of which has 5 bytes: lower --num_proc",
        ),
        ("stack\nthe reason", "sys.exit(3)", "ended with status 3 at documents 1 to 2 .* \\(the reason\\)"),
    ],
)
def test_what_a_dying_worker_prints_is_quoted_and_not_printed(
    tokenizer: BertTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    said: str,
    end: str,
    message: str,
) -> None:
    complaining_worker(monkeypatch, tmp_path, said, end)
    with pytest.raises(PotstillError, match=message) as raised:
        streams(["cat", "a dog"], TokenizerSpec.of(tokenizer, "it"), 1, 100)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_workers_end_when_the_generator_is_closed(tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[Any] = []
    create = room._Worker.__init__

    def remember(self: Any, settings: dict[str, Any]) -> None:
        create(self, settings)
        workers.append(self.process)

    monkeypatch.setattr(room._Worker, "__init__", remember)

    def endless() -> Iterator[Batch]:
        number = 0
        while True:
            yield Batch(number, [b"cat"])
            number += 1

    with closing(tokenise(endless(), TokenizerSpec.of(tokenizer, "it"), 0, 0.0, num_proc=2)) as results:
        next(results)
    assert len(workers) == 2
    assert all(process.poll() is not None for process in workers)


def test_a_worker_loads_neither_torch_nor_transformers() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({worker.__file__!r}, run_name='worker')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'potstill'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_share_of_held_out_documents_is_the_fraction_and_depends_on_the_seed() -> None:
    first, second = ([worker.is_held_out(number, seed, 0.25) for number in range(4000)] for seed in (0, 1))
    assert abs(sum(first) / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert first != second
    assert not any(worker.is_held_out(number, 0, 0.0) for number in range(4000))
