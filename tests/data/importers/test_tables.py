"""Tables and JSON lists are read a piece at a time, and hostile ones end in one line."""

import json
from pathlib import Path

import pytest

from pal_audio.data.importers import tables
from pal_audio.data.importers.tables import csv_rows, json_items
from pal_audio.errors import PalError

ITEMS = [{"n": n, "text": "ä]},{[" * n} for n in range(40)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("limit", [600, 2**20])
def test_lists_and_lines_across_buffers(tmp_path: Path, indent: int | None, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CHARS", limit)
    path = tmp_path / "a.json"
    path.write_text(" \n" + json.dumps(ITEMS, indent=indent, ensure_ascii=False) + "\n\n", encoding="utf-8-sig")
    assert [item for _, item in json_items(path)] == ITEMS
    path.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in ITEMS) + "\n", encoding="utf-8")
    assert list(json_items(path)) == list(enumerate(ITEMS, start=1))
    path.write_text("[]")
    assert list(json_items(path)) == []
    path.write_text("")
    assert list(json_items(path)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{}, {", "item 2: "),
        ("[{} {}]", "item 2: .*a comma or the end"),
        ("[{}", "item 2: .*a comma or the end"),
        ("[{},]", "item 2: "),
        ("[1]", "item 1: .*no object"),
        ("[{}] x", "item 2: .*text after the end"),
        ("no json", "item 1: .*no object"),
        ('[{"a":' + "[" * 200_000, "item 1: nested too deeply"),
        ('[{"a": "' + "b" * 2**21 + '"}]', "item 1: "),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(PalError, match=said) as raised:
        list(json_items(path))
    assert len(str(raised.value)) < 500


def test_csv_with_mark_quotes_and_lines_within_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffa,b\r\n"1,\n2",ä\r\n3\r\n4,5,6\r\n'.encode())
    assert list(csv_rows(path, ("a",))) == [(3, {"a": "1,\n2", "b": "ä"}), (4, {"a": "3", "b": ""}), (5, {"a": "4", "b": "5"})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"lacks the column\(s\) a"),
        (b"b\n1\n", r"lacks the column\(s\) a"),
        (b"a\n\xff\n", "utf-8"),
        (b"a\n" + b"x" * (2**20 + 2), "longer than 1048576 characters"),
        (b'a\n"' + b"x\n" * 200_000, "field larger than field limit"),
    ],
)
def test_wrong_csv_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(PalError, match=said):
        list(csv_rows(path, ("a",)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (json_items, lambda path: csv_rows(path, ("a",))):
        with pytest.raises(PalError, match="cannot be read: No such file"):
            list(read(tmp_path / "gone"))
