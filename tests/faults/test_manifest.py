"""Every bit of a corpus's manifest is turned: the corpus is then refused, or opens with the same content as before."""

import dataclasses
import shutil
from pathlib import Path
from random import Random

import pytest

from potstill import PotstillError
from potstill.corpus import Corpus
from potstill.corpus.manifest import FILE_NAME, FORMAT_VERSION, LanguageRecord, Manifest


def cut_and_sampled(manifest: Manifest) -> Manifest:
    """Return a manifest with every optional field: of a cut vocabulary, and of languages sampled by their size."""
    return dataclasses.replace(
        manifest,
        format_version=FORMAT_VERSION,
        checksums=manifest.checksums | {"kept_tokens.npy": "0123456789abcdef" * 4},
        whole_tokenizer=dataclasses.replace(manifest.tokenizer, name="größer", vocab_size=30522),
        language_exponent=0.7,
        languages=[LanguageRecord("de.txt", 10**9, 12345, 0.25, 1e-05), LanguageRecord("yo.txt", 10**5, 17, 0.75, 2.5)],
    )


@pytest.mark.parametrize("kind", ["plain", "cut-and-sampled"])
def test_no_turned_bit_of_a_manifest_changes_a_corpus_unnoticed(corpus_folder: Path, tmp_path: Path, kind: str) -> None:
    written = Manifest.load(corpus_folder)
    written = cut_and_sampled(written) if kind == "cut-and-sampled" else written
    written.save(tmp_path)
    whole = (tmp_path / FILE_NAME).read_bytes()
    assert Manifest.load(tmp_path) == written
    damaged, refused = bytearray(whole), 0
    with (tmp_path / FILE_NAME).open("r+b", buffering=0) as file:
        for bit in range(8 * len(whole)):
            damaged[bit // 8] ^= 1 << bit % 8
            file.seek(0)
            file.write(damaged)
            try:
                found = Manifest.load(tmp_path)
            except PotstillError as error:
                refused += str(tmp_path) in str(error)
            else:
                assert found == written, f"bit {bit % 8} of byte {bit // 8} was not noticed"
            damaged[bit // 8] = whole[bit // 8]
    assert refused > 0.98 * 8 * len(whole)


@pytest.mark.parametrize("field", ["seed", "validation_fraction", "framing", "unit", "dtype"])
def test_a_changed_field_that_nothing_else_checks_is_refused(corpus_folder: Path, tmp_path: Path, field: str) -> None:
    """These changes leave a manifest of valid types. Without its checksum such a corpus would open."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in corpus_folder.iterdir():
        (folder / file.name).symlink_to(file)
    content = (folder / FILE_NAME).read_bytes()
    end = content.index(b",\n", content.index(f'"{field}": '.encode()))
    end -= content[end - 1 : end] == b'"'
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).write_bytes(content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:])
    with pytest.raises(PotstillError, match=r"manifest\.json was changed after potstill wrote it"):
        Corpus.open(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_turned_bits_of_a_corpus_tokenizer_do_not_change_how_it_reads(
    corpus_folder: Path, tmp_path: Path, name: str, fault_seed: int
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    path = folder / "tokenizer" / name
    whole, random = path.read_bytes(), Random(fault_seed)
    text, refused, unnamed = "The pot still gives spirit, 3 casks of it.", 0, 0
    expected = Corpus.open(folder).tokenizer()(text)["input_ids"]
    for bit in random.sample(range(8 * len(whole)), 100):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = Corpus.open(folder, verify=False).tokenizer()(text)["input_ids"]
        except PotstillError as error:
            unnamed += str(folder / "tokenizer") not in str(error)
            refused += 1
        else:
            assert found == expected, f"bit {bit % 8} of byte {bit // 8} of {name} was not noticed"
    assert refused > 10
    assert unnamed == 0
