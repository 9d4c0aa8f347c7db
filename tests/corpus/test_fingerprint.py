from pathlib import Path

from corpus_samples import VOCABULARY
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from potstill.corpus.fingerprint import tokenizer_fingerprint


def bert(vocabulary: list[str] = VOCABULARY, **options: object) -> BertTokenizer:
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(vocabulary)}, **options)


def test_it_outlasts_saving_and_the_class_that_loads(tmp_path: Path) -> None:
    tokenizer = bert()
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == expected
    assert tokenizer_fingerprint(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == expected


def test_settings_of_single_calls_do_not_matter() -> None:
    tokenizer = bert()
    expected = tokenizer_fingerprint(tokenizer)
    tokenizer("the cat", truncation=True, padding="max_length", max_length=8)
    tokenizer.model_max_length = 8
    assert tokenizer_fingerprint(tokenizer) == expected


def test_whatever_changes_the_ids_changes_it() -> None:
    swapped = VOCABULARY[:-1]
    swapped[50], swapped[51] = swapped[51], swapped[50]
    added = bert()
    added.add_tokens([AddedToken("pot still", normalized=False)])
    variants = [
        bert(),
        bert(do_lower_case=False),
        bert(swapped),
        bert([*VOCABULARY, "whisky"]),
        bert(tokenize_chinese_chars=False),
        bert(mask_token="[UNK]"),
        added,
    ]
    assert len({tokenizer_fingerprint(variant) for variant in variants}) == len(variants)


def test_it_is_the_same_today_as_when_corpora_were_written() -> None:
    assert tokenizer_fingerprint(bert()) == "e51c302e584de9ae078211b668f081f47f2d67b8eac29ca13db83d164af2c206"
