"""JSON files: what is whole is read, and everything else is one sentence that names the file and what is wrong."""

import json
import math
import os
from pathlib import Path

import pytest

from potstill.errors import PotstillError
from potstill.json_files import check_finite, json_text, not_finite, parse_json, read_json, read_object


@pytest.fixture
def file(tmp_path):
    return tmp_path / "plan.json"


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "é – 😀"]}, [], "text", 0, None])
def test_what_is_written_is_read(file, value):
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(file, "The plan") == value
    file.write_text(json.dumps(value), encoding="utf-8-sig")  # escaped, and with a byte-order mark
    assert read_json(str(file), "The plan") == value


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\0" * 4096, "it holds NUL bytes"),
        (b'{"a": 1}' + b"\0" * 8, "it holds NUL bytes"),
        (b'{"a": 1', r"it is not JSON \(Expecting ',' delimiter at line 1, column 8\)"),
        (b'{"a": 1} {"a": 2}', r"it is not JSON \(Extra data at line 1, column 10\)"),
        (b"[" * 100_000 + b"]" * 100_000, "its values are nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "its values are nested too deeply"),
        (b'["\xff"]', "byte 2 is not UTF-8 text"),
        ('["é"]'.encode("utf-16"), "byte 0 is not UTF-8 text"),
        (b'["\\ud800"]', "it holds half of a surrogate pair, which is no character"),
        (b'[{"\\uDC00": 1}]', "it holds half of a surrogate pair, which is no character"),
        (b"[NaN]", r"it is not JSON \(NaN is no number of JSON\)"),
        (b'{"a": -Infinity}', r"it is not JSON \(-Infinity is no number of JSON\)"),
        (b"[1e999]", r"it is not JSON \(1e999 is beyond the range of numbers\)"),
        (b"[" + b"9" * 5000 + b"]", r"it is not JSON \(Exceeds the limit"),
    ],
)
def test_damage_is_told_with_what_to_do(file, content, why):
    file.write_bytes(content)
    with pytest.raises(PotstillError, match=rf"^The plan {file} is damaged: {why}.*; run it again\.$") as told:
        read_json(file, "The plan", "run it again")
    assert "\n" not in str(told.value)
    with pytest.raises(PotstillError, match=rf"^The plan {file} is damaged: {why}") as told:
        read_json(file, "The plan")
    assert ";" not in str(told.value)


def test_other_libraries_may_write_nan(file):
    file.write_text('{"loss": NaN, "limit": [0.0, Infinity]}')
    found = read_object(file, "The state", finite=False)
    assert math.isnan(found["loss"])
    assert found["limit"] == [0.0, math.inf]


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")
    for path, why in (
        (tmp_path / "none.json", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "plan.json", "Not a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        with pytest.raises(PotstillError, match=rf"^The plan {path} cannot be read: {why}\.$"):
            read_json(path, "The plan", "run it again")
    with pytest.raises(PotstillError, match=r"cannot be read: .*embedded null (byte|character in path)\.$"):
        read_json("a\0b", "The plan", "run it again")

    def refused(path: Path, mode: str) -> bytes:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PotstillError, match=r"cannot be read: Permission denied\.$"):
        read_json(tmp_path / "file", "The plan", "run it again")


@pytest.mark.parametrize("value", ["[]", "null", "1", '"text"', '[{"a": 1}]'])
def test_only_an_object_is_an_object(file, value):
    file.write_text('{"a": 1}')
    assert read_object(file, "The plan") == {"a": 1}
    file.write_text(value)
    with pytest.raises(PotstillError, match=rf"^The plan {file} is damaged: it holds no JSON object; run it again\.$"):
        read_object(file, "The plan", "run it again")


def test_a_line_of_a_file_is_named_as_its_reader_names_it():
    assert parse_json('{"a": 1}\n', "rows.jsonl, line 3,") == {"a": 1}
    with pytest.raises(PotstillError, match=r"^rows\.jsonl, line 3, is damaged: it is not JSON \(.*\)\.$"):
        parse_json("{'a': 1}", "rows.jsonl, line 3,")


def test_what_is_written_can_be_read(file):
    value = {"a": [1, 2.5, None, True, "é – 😀"], "b": {}}
    file.write_text(json_text(value, "The plan"), encoding="utf-8")
    assert read_json(file, "The plan") == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": [1.0, {"b": math.nan}]}, r"a 1 b is not finite \(NaN\)"),
        ({"a": math.inf, "b": -math.inf}, r"a, b are not finite \(NaN\)"),
        (math.nan, r"it is not finite \(NaN\)"),
        ({"a": Path("b")}, "Object of type PosixPath is not JSON serializable"),
        ({"path": b"/a\xe9".decode(errors="surrogateescape")}, r"'\"path\": \"/a\\udce9\"' in it is not UTF-8 text"),
    ],
)
def test_what_could_not_be_read_is_not_written(value, why):
    with pytest.raises(PotstillError, match=rf"^The plan x cannot be written: .*{why}\.$"):
        json_text(value, "The plan x")


def test_figures_that_are_no_numbers_are_named():
    measured = {"trained": {"loss": math.nan, "accuracy": 0.5, "steps": 3}, "kl": (1.0, -math.inf), "text": "nan"}
    assert not_finite(measured) == ["trained loss", "kl 1"]
    check_finite({"loss": 1.0, "text": "nan"}, "It is no result")
    with pytest.raises(PotstillError, match=r"^It is no result: loss is not finite \(NaN\)\.$"):
        check_finite({"loss": math.nan}, "It is no result")
