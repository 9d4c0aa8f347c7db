import errno
from collections.abc import Iterator
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


def test_what_is_passed_over_is_told(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/old.MD", "a/table.xls.gz", "LICENSE", "b.parquet.gz"):
        (tree / name).touch()
    find_sources([str(tree)], Path("/nowhere"))
    assert caplog.messages == [f"Skipped in {tree}: 2 .md, 2 hidden, 1 .parquet.gz, 1 .xls.gz, 1 without an ending."]
    caplog.clear()
    find_sources([str(tree / "a" / "*.[mtTM]*"), str(tree / "b.txt")], Path("/nowhere"))
    assert caplog.messages == [f"Skipped in {tree}/a/*.[mtTM]*: 2 .md."]


def test_links_are_followed_and_nothing_is_read_twice(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = tree.parent / f"{tree.name}-elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "e.txt").touch()
    (tree / "more").symlink_to(elsewhere)
    (tree / "again").symlink_to("more/deep")
    (tree / "round").symlink_to(tree)
    (elsewhere / "back").symlink_to(tree / "a")
    (tree / "a" / "A-link.txt").symlink_to("../b.txt")
    (tree / "z.txt").symlink_to(elsewhere / "deep" / "e.txt")
    everything = ["a/B.TXT.ZST", "a/c/d.parquet", "a/z.jsonl.gz", "again/e.txt", "b.txt"]
    assert [name for name, _ in names(find_sources([str(tree)], Path("/nowhere")), tree)] == everything
    assert caplog.messages == [
        f"Skipped in {tree}: 2 already found by another path, 2 hidden, 1 .md.",
        f"Links lead out of {tree}: {tree}/again/e.txt is {elsewhere}/deep/e.txt.",
    ]
    # A pattern in which links cross does not go round in circles either.
    (tree / "a" / "up").symlink_to(tree)
    found = find_sources([str(tree / "**" / "*.txt")], Path("/nowhere"))
    assert [name for name, _ in names(found, tree)] == ["a/A-link.txt", "again/e.txt"]
    # What was found through a folder is not read again through another name, unless it is named itself.
    found = find_sources([str(tree), str(tree / "more"), str(tree / "b.txt")], Path("/nowhere"))
    assert [name for name, _ in names(found, tree)].count("b.txt") == 2
    assert len({Path(source.name).resolve() for source in found}) == len(found) - 1 == len(everything)
    assert f"Skipped in {tree}/more: 7 already found by another path" in caplog.messages[-1]


def test_a_link_to_a_folder_above_is_not_followed(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "a" / "whole-disk").symlink_to("/")
    (tree / "beside").symlink_to("..")
    (tree.parent / "beside.txt").touch()
    found = find_sources([str(tree)], Path("/nowhere"))
    assert [name for name, _ in names(found, tree)] == ["a/B.TXT.ZST", "a/c/d.parquet", "a/z.jsonl.gz", "b.txt"]
    assert caplog.messages == [f"Skipped in {tree}: 2 hidden, 2 link to a folder that holds this one, 1 .md."]


def test_a_link_that_leads_nowhere_is_an_error(tree: Path) -> None:
    (tree / "more").symlink_to(tree / "gone")
    for name in (tree, tree / "m*"):
        with pytest.raises(PotstillError, match="more is a symbolic link without a target"):
            find_sources([str(name)], Path("/nowhere"))
    with pytest.raises(PotstillError, match="There is no file or folder"):
        find_sources([str(tree / "more")], Path("/nowhere"))


def test_a_folder_that_cannot_be_read_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self.name == "c":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(PotstillError, match=r"a/c cannot be read \(Permission denied\): .*permissions"):
        find_sources([str(tree)], Path("/nowhere"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/notes.md", "has a kind that cannot be read"),
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
