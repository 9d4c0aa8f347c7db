from pathlib import Path

import pytest

from potstill.corpus.sources import find_sources
from potstill.errors import PotstillError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ["b.txt", "a/z.jsonl.gz", "a/B.TXT.ZST", "a/c/d.parquet", "a/notes.md", "a/.hidden.txt", ".git/x.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(found: list, tree: Path) -> list[tuple[str, str]]:
    return [(str(Path(source.name).relative_to(tree)), source.kind) for source in found]


def test_a_folder_is_walked_in_sorted_order(tree: Path) -> None:
    assert names(find_sources([str(tree)], Path("/nowhere")), tree) == [
        ("a/B.TXT.ZST", "text"),
        ("a/c/d.parquet", "parquet"),
        ("a/z.jsonl.gz", "json"),
        ("b.txt", "text"),
    ]


def test_the_output_folder_is_not_read(tree: Path) -> None:
    assert names(find_sources([str(tree)], (tree / "a").resolve()), tree) == [("b.txt", "text")]


def test_names_keep_their_order_and_patterns_are_sorted(tree: Path) -> None:
    found = find_sources([str(tree / "b.txt"), str(tree / "a" / "*")], Path("/nowhere"))
    assert [name for name, _ in names(found, tree)] == ["b.txt", "a/B.TXT.ZST", "a/c/d.parquet", "a/z.jsonl.gz"]
    found = find_sources([str(tree / "**" / "*.gz")], Path("/nowhere"))
    assert names(found, tree) == [("a/z.jsonl.gz", "json")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").touch()
    (source,) = find_sources([str(tmp_path / "a[1].txt")], Path("/nowhere"))
    assert source.kind == "text"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/notes.md", "of no kind that can be read"),
        ("a/*.md", "matches no file"),
        ("a/nothing.txt", "There is no file or folder"),
        ("empty", "has no file that can be read"),
    ],
)
def test_a_name_that_leads_to_no_text_is_an_error(tree: Path, name: str, message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(PotstillError, match=message) as raised:
        find_sources([str(tree / name)], Path("/nowhere"))
    assert name in str(raised.value)


def test_other_names_are_hub_ids() -> None:
    (source,) = find_sources(["some-one/some_thing"], Path("/nowhere"))
    assert (source.name, source.kind) == ("some-one/some_thing", "hub")
    with pytest.raises(PotstillError, match="There is no file or folder"):
        find_sources(["missing.txt"], Path("/nowhere"))
    with pytest.raises(PotstillError, match="no text to prepare"):
        find_sources([], Path("/nowhere"))
