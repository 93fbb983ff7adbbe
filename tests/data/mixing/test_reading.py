"""Sources to clips: official layouts, tables, manifests; split rules; the guard; what is wrong in one line."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data import write_manifest
from pal_audio.data.importers.base import asked
from pal_audio.data.manifest import AudioPart
from pal_audio.data.mixing import Catalogue, read_catalogue
from pal_audio.errors import PalError

from .sets import SOUNDS, SOURCES, make_all, make_sounds, mix


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


def read(root: Path, *sources: dict[str, Any]) -> Catalogue:
    category = sources[0].get("category", "sound")
    return read_catalogue(mix(root, sources=list(sources), tasks={"classify": {"categories": [category]}}))


def ids(catalogue: Catalogue, split: str) -> set[str]:
    return {clip.id for clip in catalogue.clips[split]}  # type: ignore[index]


def test_sets_are_split_as_their_importers_say(root: Path) -> None:
    catalogue = read_catalogue(mix(root))
    by_category = {split: Counter(clip.category for clip in catalogue.clips[split]) for split in ("train", "test")}
    assert by_category["train"] == {"sound": 5 * 3 * 2, "digit": 10 * 2 * 2, "instrument": 2 * 6}
    assert by_category["test"] == {"sound": 5 * 2, "digit": 10 * 3, "instrument": 2 * 3}
    assert {clip.id.split("/")[1][0] for clip in catalogue.clips["test"] if clip.category == "sound"} == {"4"}, (
        "fold 5 is left alone"
    )
    assert {clip.id.rpartition("_")[2] for clip in catalogue.clips["test"] if clip.category == "digit"} == {"45"}
    assert catalogue.labels(["sound"]) == sorted(name.replace("_", " ") for name in SOUNDS)
    note = next(clip for clip in catalogue.clips["test"] if clip.id == "gm_notes/bass_guitar-051-060")
    assert (note.label, note.pitch) == ("bass guitar", 51.0)


def test_a_speaker_is_held_out_of_training(root: Path) -> None:
    catalogue = read_catalogue(mix(root))
    assert catalogue.speakers("train", "digit") == ["lucas", "yweweler"]
    assert catalogue.speakers("test", "digit") == ["lucas", "theo", "yweweler"]
    assert {clip.speaker for clip in catalogue.clips["test"] if clip.held_out} == {"theo"}


def test_rules_of_the_recipe_take_the_place_of_the_sets_own(root: Path) -> None:
    by_fold = read(root, SOURCES[0] | {"split": {"by": "fold", "train": [4, 5], "test": [1]}})
    assert {clip.id.split("/")[1][0] for clip in by_fold.clips["train"]} == {"4", "5"}
    assert {clip.id.split("/")[1][0] for clip in by_fold.clips["test"]} == {"1"}
    by_share = read(root, SOURCES[0] | {"split": {"test_share": 0.5}})
    assert len(by_share.clips["train"]) + len(by_share.clips["test"]) == 50
    assert 10 < len(by_share.clips["test"]) < 40
    assert ids(by_share, "test") == ids(read(root, SOURCES[0] | {"split": {"test_share": 0.5}}), "test")
    by_speaker = read(root, {**SOURCES[1], "hold_out": {}, "split": {"test_share": 0.4, "group": "speaker"}})
    assert not {c.speaker for c in by_speaker.clips["train"]} & {c.speaker for c in by_speaker.clips["test"]}


def test_manifests_are_a_source(root: Path, tmp_path: Path) -> None:
    folder = root / "esc10" / "audio"
    for name, fold in (("train", 1), ("test", 2)):
        clips = [AudioPart(path=str(folder / f"{fold}-1000-A-{n}.wav"), end_s=1.0) for n in range(5)]
        examples = [
            asked(f"{name}-{n}", [clip], "?", "x", "t", {"kind": SOUNDS[n], "key": 60 + n}) for n, clip in enumerate(clips)
        ]
        write_manifest(tmp_path / f"{name}.jsonl", examples)
    given = {
        "type": "manifest",
        "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "test.jsonl"),
        "root": str(folder),
    }
    catalogue = read(root, given | {"label": "kind", "pitch": "key", "labels": ["dog", "rain"]})
    assert ids(catalogue, "train") == {"train/train-0", "train/train-1"}
    assert {(clip.label, clip.pitch, clip.end_s) for clip in catalogue.clips["test"]} == {("dog", 60, 1.0), ("rain", 61, 1.0)}
    with pytest.raises(PalError, match="leaves the manifest's folder"):
        read(root, given | {"root": None})
    with pytest.raises(PalError, match="no 'knid' is said of it; did you mean 'kind'"):
        read(root, given | {"label": "knid"})


def test_procedural_sounds_are_in_both_splits() -> None:
    catalogue = read_catalogue(mix(sources=[{"type": "procedural", "labels": ["car horn", "bell"]}]))
    assert ids(catalogue, "train") == ids(catalogue, "test") == {"procedural/bell", "procedural/horn"}
    assert (catalogue.noun("car horn"), catalogue.clauses_of(["sound"])["bell"]) == ("a car horn", "a bell rings")


@pytest.mark.parametrize("how", ["path", "content", "group", "stretch"])
def test_a_recording_that_trains_may_not_test(root: Path, tmp_path: Path, how: str) -> None:
    make_sounds(tmp_path / "esc10")
    audio = tmp_path / "esc10" / "audio"
    sources: list[dict[str, Any]] = [SOURCES[0]]
    if how == "path":  # two sources that name one set, by rules that do not agree
        sources.append(SOURCES[0] | {"split": {"by": "fold", "train": [4], "test": [5]}})
    elif how == "content":
        shutil.copy(audio / "1-1000-A-0.wav", audio / "4-1000-A-0.wav")
    elif how == "group":
        sources = [SOURCES[0] | {"split": {"group": "category"}}]
    else:
        for name, start_s, end_s in (("train", 0.0, 1.0), ("test", 0.9, 1.5)):
            part = AudioPart(path=str(audio / "1-1000-A-0.wav"), start_s=start_s, end_s=end_s)
            write_manifest(tmp_path / f"{name}.jsonl", [asked(name, [part], "?", "dog", "t")])
        sources = [{"type": "manifest", "train": "train.jsonl", "test": "test.jsonl"}]
    with pytest.raises(PalError, match=r"trains and .* tests, and they are the same recording") as caught:
        read(tmp_path, *sources)
    assert "\n" not in str(caught.value)


def test_stretches_that_do_not_meet_are_two_recordings(root: Path, tmp_path: Path) -> None:
    for name, start_s, end_s in (("train", 0.0, 0.9), ("test", 0.9, 1.5)):
        part = AudioPart(path=str(root / "esc10/audio/1-1000-A-0.wav"), start_s=start_s, end_s=end_s)
        write_manifest(tmp_path / f"{name}.jsonl", [asked(name, [part], "?", "dog", "t")])
    manifests = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "root": str(root)}
    catalogue = read(root, {"type": "manifest", **manifests})
    assert len(catalogue.clips["train"]) == len(catalogue.clips["test"]) == 1


def test_files_that_are_not_there_are_left_out_and_said(tmp_path: Path) -> None:
    make_sounds(tmp_path / "esc10")
    (tmp_path / "esc10/audio/1-1000-A-0.wav").unlink()
    with pytest.warns(UserWarning, match=r"data.sources\[0\]: 1 files are not there and left out, the first is .*1-1000-A-0.wav"):
        assert len(read(tmp_path, SOURCES[0]).clips["train"]) == 29


@pytest.mark.parametrize(
    ("number", "changes", "words"),
    [
        (
            0,
            {"root": "none"},
            r"data.sources\[0\].root: no such folder .*none; name yours with --set data.root=FOLDER or .*0.root",
        ),
        (0, {"root": "fsdd"}, r"data.sources\[0\] \(esc10\): no ESC-50 layout"),
        (0, {"labels": ["dgo"]}, "no clip has the label 'dgo'"),
        (0, {"clauses": {"rian": "x"}}, "no clip has the label 'rian'; did you mean 'rain'"),
        (0, {"split": {"by": "flod", "train": [1], "test": [2]}}, "no 'flod' is said of it; did you mean 'fold'"),
        (0, {"split": {"by": "fold", "train": [8], "test": [9]}}, "no clip of it trains or tests"),
        (0, {"hold_out": {"speker": ["x"]}}, "no 'speker' is said of it"),
        (2, {"table": "meter.csv"}, "meter.csv: cannot be read"),
        (2, {"file": "audio/{file}"}, "lacks the column"),
        (2, {"file": "../esc10/{filename}"}, "leads out of"),
        (2, {"label": "instrumant"}, "no 'instrumant' is said of it; did you mean 'instrument'"),
        (2, {"pitch": "instrument"}, "pitch 'piano' is no MIDI number"),
    ],
)
def test_what_is_wrong_is_one_line(root: Path, number: int, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        read(root, SOURCES[number] | changes | {"category": "sound"})
    assert "\n" not in str(caught.value)
