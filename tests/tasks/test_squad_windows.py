from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from test_squad_reading import question, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_windows import make_windows

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzß0123456789"
WORDS = ["the", "still", "is", "of", "copper", "what", "cask", "oak", "spirit", "years", "stills", "column"]
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *".,;()?[]„“—桶酒", *WORDS]
SMALL = {"max_length": 32, "stride": 8, "max_question_length": 12}
SMALL_FOR = {"bert": SMALL, "roberta": {"max_length": 72, "stride": 24, "max_question_length": 20}}
"""Lengths by which most contexts are several windows and every answer is in one of them."""


def bert_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *PIECES])}
    return BertTokenizer(vocab=vocabulary, model_max_length=64, strip_accents=False)


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, a space belonging to the word after it, between <s> and </s>, two </s> inside a pair."""
    vocabulary = {"<s>": 0, "</s>": 1}
    vocabulary |= {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}
    vocabulary["Ġc"] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


TOKENIZERS = {"bert": bert_tokenizer(), "roberta": roberta_tokenizer()}


@pytest.fixture
def dataset(tmp_path: Path) -> datasets.Dataset:
    return read_squad(write(tmp_path / "it.json")).dataset


def one_question(context: str, text: str = "what?", *answers: str) -> datasets.Dataset:
    qa = question("q", text, context, *answers)
    gold = {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")}
    return datasets.Dataset.from_list([{"id": "q", "context": context, "question": text, "answers": gold}])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_window_is_what_the_tokenizer_makes_of_the_pair(dataset: datasets.Dataset, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    lengths = {"max_length": 64, "stride": 5}
    windows = make_windows(dataset, tokenizer, **lengths, max_question_length=48)
    expected = tokenizer(
        dataset["question"][:],
        dataset["context"][:],
        truncation="only_second",
        return_overflowing_tokens=True,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        **lengths,
    )
    assert len(windows) > len(dataset)
    assert windows["example"][:] == expected["overflow_to_sample_mapping"]
    assert windows["input_ids"][:] == expected["input_ids"]
    assert windows["length"][:] == [len(ids) for ids in expected["input_ids"]]
    assert ("token_type_ids" in windows.column_names) is ("token_type_ids" in expected)
    if "token_type_ids" in expected:
        assert windows["token_type_ids"][:] == expected["token_type_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_windows_cover_the_context_and_overlap_by_the_stride(dataset: datasets.Dataset, name: str) -> None:
    tokenizer, lengths = TOKENIZERS[name], SMALL_FOR[name]
    stride = lengths["stride"]
    windows = make_windows(dataset, tokenizer, **lengths)
    for number, row in enumerate(dataset):
        *others, last = own = [window for window in windows if window["example"] == number]
        assert all(window["length"] == lengths["max_length"] for window in others)
        assert last["length"] <= lengths["max_length"]
        question = tokenizer(row["question"], add_special_tokens=False)["input_ids"][: lengths["max_question_length"]]
        before = len(question) + tokenizer.num_special_tokens_to_add(pair=True) - 1
        context: list[int] = []
        for window in own:
            assert window["length"] == len(window["input_ids"])
            assert window["input_ids"][0] == tokenizer.cls_token_id
            assert window["input_ids"][1 : len(question) + 1] == question
            part = window["input_ids"][before:-1]
            if context:
                assert context[-stride:] == part[:stride]
                assert len(part) > stride
                part = part[stride:]
            context += part
        assert context == tokenizer(row["context"], add_special_tokens=False)["input_ids"]
    assert len(windows) > 2 * len(dataset)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_mask_is_the_context_and_cls_and_characters_are_those_of_the_tokens(
    dataset: datasets.Dataset, name: str
) -> None:
    tokenizer = TOKENIZERS[name]
    windows = make_windows(dataset, tokenizer, **SMALL_FOR[name])
    for window in windows:
        context = dataset[window["example"]]["context"]
        before = window["length"] - 1
        mask, start, end = (np.array(window[name]) for name in ("answer_mask", "char_start", "char_end"))
        assert mask[0]
        assert (start[0], end[0], start[before], end[before]) == (0, 0, 0, 0)
        assert not mask[before]
        assert (mask[1:] == (end > start)[1:]).all()
        for position in np.flatnonzero(mask)[1:]:
            text = context[start[position] : end[position]]
            assert text == text.strip() != ""
            piece = tokenizer.convert_ids_to_tokens(window["input_ids"][position])
            assert piece != "Ġ"  # a space alone is no answer
            if len(piece) > 1 and piece != "[UNK]":
                assert text.lower() == piece.removeprefix("##").removeprefix("Ġ")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_positions_are_those_of_the_first_answer_where_the_window_holds_it_all(
    dataset: datasets.Dataset, name: str
) -> None:
    tokenizer = TOKENIZERS[name]
    windows = make_windows(dataset, tokenizer, **SMALL_FOR[name])
    found = set()
    for window in windows:
        row = dataset[window["example"]]
        first, last = window["start_positions"], window["end_positions"]
        covered = [window["char_start"][i] for i in range(window["length"]) if window["char_end"][i]]
        if not row["answers"]["text"]:
            assert (first, last) == (0, 0)
            continue
        begin = row["answers"]["answer_start"][0]
        end = begin + len(row["answers"]["text"][0])
        inside = min(covered) <= begin and max(window["char_end"]) >= end
        if (first, last) == (0, 0):
            # Of a character that is three tokens, a border of the window may leave one outside.
            assert not inside or min(covered) == begin or max(window["char_end"]) == end
            continue
        assert window["answer_mask"][first]
        assert window["answer_mask"][last]
        assert row["context"][window["char_start"][first] : window["char_end"][last]] == row["answers"]["text"][0]
        found.add(window["example"])
    assert found == {number for number, row in enumerate(dataset) if row["answers"]["text"]}


def test_an_answer_within_a_token_takes_the_whole_of_it() -> None:
    (window,) = make_windows(
        one_question("the stills of copper", "what?", "till", "copper"), TOKENIZERS["bert"], **SMALL
    )
    assert window["start_positions"] == window["end_positions"] == 5
    assert (window["char_start"][5], window["char_end"][5]) == (4, 10)


@pytest.mark.parametrize(
    ("oaks", "expected"), [(19, {14: 5}), (20, {14: 6}), (21, {21: 0}), (26, {21: 5}), (25, {21: 4}), (7, {7: 0})]
)
def test_a_window_with_half_of_the_answer_has_none_of_it(oaks: int, expected: dict[int, int]) -> None:
    text = " ".join(["oak"] * oaks + ["copper", "still", "of"] + ["oak"] * (40 - oaks))
    lengths = {"max_length": 14, "stride": 2, "max_question_length": 2}
    windows = make_windows(one_question(text, "what?", "copper still of"), TOKENIZERS["bert"], **lengths)
    # Nine tokens of context a window, each window beginning seven tokens after the one before it.
    found = {
        7 * number: (window["start_positions"] - 4, window["end_positions"] - 4)
        for number, window in enumerate(windows)
        if (window["start_positions"], window["end_positions"]) != (0, 0)
    }
    assert found == {begin: (first, first + 2) for begin, first in expected.items()}


def test_white_space_around_an_answer_is_no_part_of_it() -> None:
    tokenizer = TOKENIZERS["roberta"]
    for answer in (" oak", " oak cask "):  # one space is a token of its own, one begins a token
        (window,) = make_windows(one_question("of  oak cask  is", "?", answer), tokenizer, 64, 8, 8)
        first, last = window["start_positions"], window["end_positions"]
        assert window["answer_mask"][first]
        assert window["answer_mask"][last]
        text = "of  oak cask  is"[window["char_start"][first] : window["char_end"][last]]
        assert text == answer.strip()


def test_special_tokens_in_the_text_are_text_and_settings_of_the_tokenizer_do_not_matter() -> None:
    tokenizer = bert_tokenizer()
    text = "the [SEP] [MASK] cask [CLS]"
    expected = make_windows(one_question(text, "[SEP]?", "cask"), tokenizer, **SMALL)[0]
    assert expected["input_ids"].count(tokenizer.sep_token_id) == 2
    assert expected["input_ids"].count(tokenizer.cls_token_id) == 1
    assert tokenizer.mask_token_id not in expected["input_ids"]
    assert text[expected["char_start"][expected["start_positions"]] :].startswith("cask")
    tokenizer("the", truncation=True, padding="max_length", max_length=4)
    assert make_windows(one_question(text, "[SEP]?", "cask"), tokenizer, **SMALL)[0] == expected
    assert tokenizer("[SEP]", add_special_tokens=False)["input_ids"] == [tokenizer.sep_token_id]  # as before


def test_a_long_question_is_cut_at_its_end() -> None:
    tokenizer = TOKENIZERS["bert"]
    (window,) = make_windows(one_question("copper", "what is the " * 30, "copper"), tokenizer, **SMALL)
    assert tokenizer.decode(window["input_ids"]) == "[CLS] " + "what is the " * 4 + "[SEP] copper [SEP]"


def test_a_context_without_tokens_still_has_a_window() -> None:
    (window,) = make_windows(one_question(" ", "what?"), TOKENIZERS["bert"], **SMALL)
    assert window["answer_mask"] == [True] + [False] * 4
    assert window["start_positions"] == 0


def test_many_questions_are_numbered_through(dataset: datasets.Dataset) -> None:
    many = datasets.concatenate_datasets([dataset] * 300)
    windows = make_windows(many, TOKENIZERS["bert"], **SMALL)
    each = len(windows) // 300
    assert sorted(set(windows["example"])) == list(range(2400))
    assert windows.select(range(len(windows) - each, len(windows)))["input_ids"][:] == windows["input_ids"][:each]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 65}, "reads up to 64 tokens: lower it"),
        ({"max_length": 32}, "64 for the question leave -35"),
        (
            {"max_length": 32, "max_question_length": 12, "stride": 17},
            "leave 17 for the context, but 17 of these overlap: raise --max_length, or lower --stride.",
        ),
        ({"max_length": 32, "max_question_length": 0, "stride": 1}, "raise --max_length"),
        ({"max_length": 32, "max_question_length": 1, "stride": -1}, "raise --max_length"),
    ],
)
def test_lengths_that_leave_no_room_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        make_windows(one_question("copper", "what?", "copper"), TOKENIZERS["bert"], **options)


def test_a_tokenizer_that_opens_no_pair_with_cls_is_an_error() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    for special in ({}, {"cls_token": "b"}):
        with pytest.raises(PotstillError, match=r"does not begin a pair of texts with \[CLS\]"):
            make_windows(one_question("b", "a", "b"), PreTrainedTokenizerFast(tokenizer_object=backend, **special))
