"""Scenes as text, and what sounds in them."""

from pathlib import Path

import pytest

from pal_audio.data import build, prepare, read_manifest
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.data.mixing.sounding import sounding
from pal_audio.data.mixing.telling import as_text, told
from pal_audio.data.sources import ManifestsConfig
from pal_audio.errors import PalError

from .sets import make_all, mix

META = {
    "seconds": 8.0,
    "background": "rain",
    "background_category": "sound",
    "background_clip": "esc10/x",
    "events": [
        {"label": "seven", "category": "digit", "onset_s": 1.23, "offset_s": 1.61},
        {"label": "piano", "category": "instrument", "onset_s": 0.5, "offset_s": 2.0, "pitch": 61.6},
    ],
}


def example(**meta: object) -> Example:
    question = [AudioPart(path="a.flac"), TextPart(text="What is it?")]
    return Example(
        id="x", messages=[Message(role="user", content=question), Message(role="assistant", content="rain")], meta=meta
    )


def test_what_sounds_is_in_order_and_the_background_sounds_throughout() -> None:
    found = sounding(example(**META))
    assert [(one.label, one.onset_s, one.offset_s, one.behind) for one in found] == [
        ("rain", 0.0, 8.0, True), ("piano", 0.5, 2.0, False), ("seven", 1.23, 1.61, False),
    ]  # fmt: skip
    assert [one.label for one in sounding(example(**META), ["digit", "instrument"])] == ["piano", "seven"]
    noise = {key: value for key, value in META.items() if key != "background_category"} | {"background": "white"}
    assert [one.label for one in sounding(example(**noise))] == ["piano", "seven"]


def test_a_scene_reads_as_text_in_the_place_of_its_clip() -> None:
    text = "scene of 8.0 s: 0.5-2.0 piano at 62; 1.2-1.6 seven; behind it rain"
    assert told(example(**META)) == text
    changed = as_text(example(**META))
    assert changed.question == f"{text}\nWhat is it?"
    assert changed.answer == "rain"
    assert not changed.audio


@pytest.mark.parametrize("meta", [{}, {"events": [{"label": "dog"}], "seconds": 1}, {"events": 3, "seconds": 1}])
def test_what_is_no_scene_is_named(meta: dict[str, object]) -> None:
    with pytest.raises(PalError, match="'x': its meta is not that of a scene"):
        as_text(example(**meta))


def test_a_source_reads_a_mix_as_text_and_a_part_of_it(tmp_path: Path) -> None:
    tasks = {"first": 1, "background": {"scene": {"background": {"sound": "sound", "snr_db": 5}}}}
    out = tmp_path / "mix"
    build(mix(make_all(tmp_path / "sets"), tasks=tasks, num_train=8, num_test=6), out, workers=1)
    for file in out.rglob("*.flac"):
        file.unlink()  # no sound is read
    test = [{"path": out / "test.jsonl", "as_text": True, "first": 4}]
    config = ManifestsConfig(train=[{"path": out / "train.jsonl", "as_text": True}], test=test)  # type: ignore[list-item]
    data = prepare(config, tmp_path / "run")
    assert [len(data.train()), len(data.test)] == [8, 4]
    whole = read_manifest(out / "train.jsonl")
    for one, other in zip(data.train(), whole, strict=True):
        assert one.question == f"{told(other)}\n{other.question}"
        assert (one.task == "background") == ("behind it" in one.question)
    with pytest.raises(PalError, match=r"train.jsonl: 8 sound files are not there"):
        prepare(ManifestsConfig(train=[out / "train.jsonl"], test=test), tmp_path / "run")  # type: ignore[list-item]
