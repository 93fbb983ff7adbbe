"""Plain text as data: documents of a file, and its place in a recipe's sources."""

from pathlib import Path

import pytest

from pal_audio.data import Document, ManifestsConfig, prepare, read_documents
from pal_audio.data.prepare import check_places
from pal_audio.errors import PalError
from tests.training.shrink import write_clips


def found(path: Path, documents: str = "lines") -> list[tuple[str, str]]:
    return [(item.id, item.messages[0].text) for item in read_documents(path, documents)]  # type: ignore[arg-type]


def test_lines_files_and_json_lines(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes("\ufeffone  two\r\n\n \nthree é\n".encode())
    assert found(plain) == [("a.txt:1", "one  two"), ("a.txt:4", "three é")]
    assert found(plain, "file") == [("a.txt:1", "one  two\r\n\n \nthree é\n")]
    lines.write_text('{"text": "one\\ntwo", "more": 1}\n\n{"text": "three"}')
    assert found(lines) == found(lines, "file") == [("b.jsonl:1", "one\ntwo"), ("b.jsonl:3", "three")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b" \n\n", "no document in it"),
        ("a.txt", b"one\n\xff\n", "line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "one"}\n{"txt": "two"}\n', 'line 2: needs an object with "text"'),
        ("a.jsonl", b"[1]\n", "line 1: needs an object"),
        ("a.jsonl", b"{", "line 1: needs an object"),
        ("a.jsonl", b"[" * 100_000, "line 1: needs an object"),
    ],
)
def test_what_is_no_text_is_said_with_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PalError, match=words):
        read_documents(tmp_path / name)
    with pytest.raises(PalError, match="cannot be read"):
        read_documents(tmp_path / "none.txt")


def test_texts_stand_among_manifests(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    sound, text = str(write_clips(tmp_path, "sound", 4)), str(tmp_path / "a.txt")
    config = ManifestsConfig.model_validate(
        {"train": [sound, {"text": text, "weight": 1.5, "name": "book"}], "test": [{"text": text}, sound]}
    )
    data = prepare(config, tmp_path / "out")
    assert {name: len(items) for name, items in data.sources.items()} == {"sound": 4, "book": 3}
    assert all(isinstance(item, Document) for item in data.train(["book"]))
    assert [isinstance(item, Document) for item in data.test] == [True, True, False, False, False, False]
    assert data.chance == 0.5  # of the questions alone
    only = prepare(ManifestsConfig.model_validate({"train": [{"text": text}], "test": [{"text": text}]}), tmp_path / "out")
    assert (only.chance, only.chance_by_task) == (0.0, {})


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_text_that_is_not_there_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "a.txt").write_text("one")
    there = {"text": str(tmp_path / "a.txt")}
    both = {"train": [there], "test": [there]} | {place: [there, {"text": str(tmp_path / "b.txt")}]}
    with pytest.raises(PalError, match=rf"data.{place}\[1\].text: no such text .*b.txt; .*--set data.{place}.1.text=FILE"):
        check_places(ManifestsConfig.model_validate(both))


def test_unknown_keys_of_a_text_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'documents'"):
        ManifestsConfig.model_validate({"train": [{"text": "a", "document": "file"}], "test": ["b"]})
    with pytest.raises(ValueError, match="two sources are called 'a'"):
        ManifestsConfig.model_validate({"train": [{"text": "a.txt"}, "a.jsonl"], "test": ["b"]})
