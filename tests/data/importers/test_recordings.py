"""Importers: the official layouts made small, what is wrong with them named, and the recordings at hand."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pal_audio.data import check_manifest, import_recordings, write_manifest
from pal_audio.data.importers.recordings import DIGIT_WORDS, ESC_FOLDS, digit_recordings, esc_recordings
from pal_audio.errors import PalError

AT_HAND = Path(__file__).parents[4] / "shared" / "data"
needs_recordings = pytest.mark.skipif(not AT_HAND.is_dir(), reason="no real recordings beside the checkout (../shared/data)")
HEADER = "filename,fold,target,category,esc10,src_file,take\n"


def make_esc(root: Path, num_per_fold: int = 2) -> Path:
    """A small ESC-50: three classes, the last not of ESC-10."""
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    rows = []
    for target, (category, esc10) in enumerate([("dog", True), ("crying_baby", True), ("church_bells", False)]):
        for fold in range(1, 6):
            for clip in range(num_per_fold):
                name = f"{fold}-{1000 + clip}-A-{target}.wav"
                soundfile.write(root / "audio" / name, np.zeros(80, np.float32), 8000)
                rows.append(f"{name},{fold},{target},{category},{esc10},{1000 + clip},A\n")
    (root / "meta" / "esc50.csv").write_text(HEADER + "".join(rows))
    return root


def make_digits(root: Path) -> Path:
    (root / "recordings").mkdir(parents=True)
    for digit in range(10):
        for index in (0, 4, 5, 44, 45, 49):
            name = f"{digit}_{'theo' if index % 2 else 'lucas'}_{index}.wav"
            soundfile.write(root / "recordings" / name, np.zeros(80, np.float32), 8000)
    (root / "recordings" / "README.md").write_text("not a recording")
    return root


def test_esc_splits_by_fold(tmp_path: Path) -> None:
    root = make_esc(tmp_path / "ESC-50-master")
    for split, folds in ESC_FOLDS.items():
        found = esc_recordings(tmp_path, split)
        assert {r.meta["fold"] for r in found} == set(folds)
        assert {r.answer for r in found} == {"dog", "crying baby"}
        assert len(found) == 2 * 2 * len(folds)
        assert all(r.path.parent == (root / "audio").resolve() for r in found)
        assert {r.answer for r in esc_recordings(root, split, "esc50")} == {"dog", "crying baby", "church bells"}


def test_digits_split_by_index(tmp_path: Path) -> None:
    make_digits(tmp_path)
    indices = {split: {r.meta["index"] for r in digit_recordings(tmp_path, split)} for split in ("train", "test", "final")}
    assert indices == {"train": {5, 44}, "test": {45, 49}, "final": {0, 4}}
    assert {r.answer for r in digit_recordings(tmp_path, "train")} == set(DIGIT_WORDS)
    seven = next(r for r in digit_recordings(tmp_path, "test") if r.path.name == "7_theo_45.wav")
    assert seven.answer == "seven"


def test_examples_change_wordings_within_each_class(tmp_path: Path) -> None:
    make_esc(tmp_path)
    examples = import_recordings("esc10", tmp_path, "train")
    assert len(examples) == 12
    assert len({example.id for example in examples}) == 12
    for answer in ("dog", "crying baby"):
        assert len({example.question for example in examples if example.answer == answer}) == 4
    assert all(example.task == "esc10" for example in examples)


def test_importing_writes_nothing_and_points_at_the_originals(tmp_path: Path) -> None:
    root = make_digits(tmp_path / "data")
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    (tmp_path / "out").mkdir()
    manifest = tmp_path / "out" / "test.jsonl"
    write_manifest(manifest, import_recordings("digits", root, "test"))
    assert check_manifest(manifest, [root]) == []
    assert len(check_manifest(manifest)) == 20  # outside the manifest's folder, and no root named
    assert str(tmp_path) not in manifest.read_text()
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_a_missing_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(PalError, match=r"no ESC-50 layout under .*looked for .*ESC-50-master/meta/esc50\.csv"):
        import_recordings("esc10", tmp_path, "train")
    with pytest.raises(PalError, match=r"no Free Spoken Digit layout under .*looked for recordings, fsdd/recordings"):
        import_recordings("digits", tmp_path, "train")
    with pytest.raises(PalError, match="unknown set 'esc11'; known are esc10"):
        import_recordings("esc11", tmp_path, "train")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("filename,fold,category\n", r"lacks the column\(s\) esc10"),
        (HEADER + "gone.wav,1,0,dog,True,1,A\n", "line 2: no such file 'gone.wav'"),
        (HEADER + "../meta/esc50.csv,1,0,dog,True,1,A\n", "line 2: no such file"),
        (HEADER + "a.wav,x,0,dog,True,1,A\n", "line 2: fold 'x'"),
        (HEADER + "a.wav\n", "line 2: fold ''"),
        (HEADER, "no recording of split 'train'"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, table: str, said: str) -> None:
    make_esc(tmp_path)
    (tmp_path / "meta" / "esc50.csv").write_text(table)
    with pytest.raises(PalError, match=said):
        esc_recordings(tmp_path, "train")


@needs_recordings
def test_recordings_at_hand() -> None:
    sizes = {(t, s): len(import_recordings(t, AT_HAND, s)) for t in ("esc10", "digits") for s in ("train", "test")}
    assert sizes == {("esc10", "train"): 240, ("esc10", "test"): 80, ("digits", "train"): 2400, ("digits", "test"): 300}
    for task in ("esc10", "digits"):
        train, test = (import_recordings(task, AT_HAND, split) for split in ("train", "test"))
        assert not {e.audio[0].path for e in train} & {e.audio[0].path for e in test}
        assert {e.answer for e in train} == {e.answer for e in test}
        assert all(Path(e.audio[0].path).is_file() for e in train + test)
        with pytest.raises(PalError, match="no recording of split 'final'"):
            import_recordings(task, AT_HAND, "final")
