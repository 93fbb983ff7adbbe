"""Where manifests go: never into the set, never over something, one writer, whole or not at all."""

import json
from pathlib import Path

import pytest

from pal_audio.data import import_set, read_manifest
from pal_audio.data.folder import locked
from pal_audio.data.importers import IMPORTERS
from pal_audio.errors import PalError

from .layouts import esc, plain_csv, sound, text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plain_csv(tmp_path / "set")
    return tmp_path / "set"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_nothing_is_written_under_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    before = sorted(root.rglob("*"))
    for out in (root, root / "out", root / ".." / "set" / "out", tmp_path / "link" / "out"):
        with pytest.raises(PalError, match="lies in the set's own folder"):
            import_set("csv", root, out, overwrite=True)
    with pytest.raises(PalError, match="lies in the set's own folder"):
        import_set("csv", root / "calls.csv", root / "out")
    assert sorted(root.rglob("*")) == before


def test_a_full_folder_is_refused_and_overwriting_touches_only_ours(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_set("csv", root, out)
    first = contents(out)
    with pytest.raises(PalError, match=r"OUT .* is not empty .*--overwrite"):
        import_set("csv", root, out)
    text(out / "notes.txt", "mine")
    import_set("csv", root, out, overwrite=True)
    assert contents(out) == first | {"notes.txt": b"mine\n"}
    esc(tmp_path / "esc")
    (tmp_path / "esc" / "audio" / "1-00001-gone-0.wav").symlink_to("5-00001-A-0.wav")
    import_set("esc10", tmp_path / "esc", out, overwrite=True)
    assert set(contents(out)) == {"train.jsonl", "val.jsonl", "test.jsonl", "import.json", "notes.txt"}  # no stale missing.txt
    with pytest.raises(PalError, match=r"OUT .* is not a folder"):
        import_set("csv", root, out / "notes.txt")


def test_a_failed_import_leaves_the_old_one(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_set("csv", root, out)
    first = contents(out)
    text(root / "late.csv", "path,label", "a.wav,dog", ",dog")
    with pytest.raises(PalError, match="the path is empty"):
        import_set("csv", root, out, overwrite=True)
    assert contents(out) == first


def test_after_a_kill_the_same_command_works(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".train.jsonl.tmp").write_text("half a li")
    import_set("csv", root, out)
    assert set(contents(out)) == {"train.jsonl", "test.jsonl", "missing.txt", "import.json"}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "item 2: cannot be written as JSON"),
        ({"conversations": [{"from": "human", "value": "<audio>"}], "audios": ["\ud800.wav"]}, "item 2: path: "),
    ],
)
def test_text_that_is_no_unicode(tmp_path: Path, item: dict, said: str) -> None:
    good = {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]}
    text(tmp_path / "set" / "mine.json", json.dumps([good, item]))
    with pytest.raises(PalError, match=said):
        import_set("sharegpt", tmp_path / "set", tmp_path / "out")


def test_meta_of_any_depth(tmp_path: Path) -> None:
    rubric = "[" * 900 + "]" * 900
    said = '"question": "What?", "choices": ["a", "b"], "answer": "a", "audio_path": "a.wav"'
    text(tmp_path / "set" / "MMAR-meta.jsonl", f'{{"id": "x", {said}, "rubric": {rubric}}}')
    sound(tmp_path / "set" / "a.wav")
    with pytest.raises(PalError, match="item 1: cannot be written as JSON"):
        import_set("mmar", tmp_path / "set", tmp_path / "out")


def test_one_writer(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(PalError, match="being written by another process"):
        import_set("csv", root, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_paths_that_leave_root_are_left_out(root: Path, tmp_path: Path) -> None:
    sound(tmp_path / "secret.wav")
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "loop.wav").symlink_to("loop.wav")
    names = ["../secret.wav", str(tmp_path / "secret.wav"), "link.wav", "loop.wav", "x" * 300 + ".wav", "a\0b.wav", "a.wav"]
    text(root / "calls.csv", "path,label", *(f"{name},dog" for name in names))
    result = import_set("csv", root / "calls.csv", tmp_path / "out")
    assert result.num_left_out == {"audio path leaves ROOT": 3, "no such audio file": 3}
    (example,) = read_manifest(tmp_path / "out" / "train.jsonl", [root])
    assert example.audio[0].path == str((root / "a.wav").resolve())


def test_nothing_to_use_is_an_error(root: Path, tmp_path: Path) -> None:
    (root / "a.wav").unlink()
    text(root / "calls.csv", "path,label", "a.wav,dog")
    with pytest.raises(PalError, match=r"none of 1 items can be used; the first: no such audio file: .*a\.wav"):
        import_set("csv", root / "calls.csv", tmp_path / "out")
    text(root / "calls.csv", "path,label")
    with pytest.raises(PalError, match="none of 0 items can be used"):
        import_set("csv", root / "calls.csv", tmp_path / "out")


def test_equal_ids_are_an_error(tmp_path: Path) -> None:
    text(tmp_path / "set" / "vggsound.csv", "a,1,dog,train", "a,1,cat,train")
    sound(tmp_path / "set" / "a_1.wav")
    with pytest.raises(PalError, match="two items have the id 'vggsound-a-1'"):
        import_set("vggsound", tmp_path / "set", tmp_path / "out")


def test_wrong_names(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PalError, match="no set is named 'esc5'; did you mean 'esc50'"):
        import_set("esc5", root, tmp_path / "out")
    with pytest.raises(PalError, match="known are esc10"):
        import_set("???", root, tmp_path / "out")
    with pytest.raises(PalError, match=r"ROOT .*nowhere: no such folder; esc50 needs meta/esc50\.csv"):
        import_set("esc50", tmp_path / "nowhere", tmp_path / "out")


def test_every_set_says_what_it_needs() -> None:
    for importer in IMPORTERS.values():
        assert importer.needs
        assert importer.archives


def test_progress(root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    import_set("csv", root, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
