"""Items measured on what comes out: levels, noise, rooms, times; and functions of (seed, split, index) alone."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pal_audio.data import Composer, parse_caption, read_catalogue, write_manifest
from pal_audio.data.importers.base import asked
from pal_audio.data.manifest import AudioPart
from pal_audio.data.mixing.compose import EVENT_RMS, PEAK, Composed

from .sets import RATE_HZ, SOURCES, burst, click, make_all, make_sounds, mix, write
from .test_acoustics import rt60_of

CAPTIONS = {"caption": {"scene": {"num_events": [2, 4]}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


def composer(root: Path | None, **changes: Any) -> Composer:
    config = mix(root, **changes)
    return Composer(config, read_catalogue(config))


def spans(item: Composed) -> np.ndarray:
    """Samples in which an event sounds."""
    inside = np.zeros(len(item.wav_S), bool)
    for event in item.meta["events"]:
        inside[round(event["onset_s"] * RATE_HZ) : round(event["offset_s"] * RATE_HZ)] = True
    return inside


def rms_db(wav_S: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(wav_S.astype(np.float64) ** 2)))


@pytest.mark.parametrize("colour", ["white", "pink"])
def test_noise_is_as_far_below_as_the_manifest_says(root: Path, colour: str) -> None:
    """The same item with and without its noise: their difference is the noise, whatever the composer holds it for."""
    clean = composer(root, tasks=CAPTIONS)
    noisy = composer(root, tasks=CAPTIONS, scene={"background": {"sound": colour, "snr_db": [-5, 20]}})
    ratios = []
    for index in range(12):
        one, other = clean.item("train", index), noisy.item("train", index)
        assert [e["onset_s"] for e in one.meta["events"]] == [e["onset_s"] for e in other.meta["events"]]
        events_S = one.wav_S * 10 ** ((other.meta["scale_db"] - one.meta["scale_db"]) / 20)
        ratio_db = rms_db(events_S[spans(one)]) - rms_db(other.wav_S - events_S)
        assert ratio_db == pytest.approx(other.meta["snr_db"], abs=0.1)
        assert other.meta["background"] == colour
        ratios.append(ratio_db)
        before = round(one.meta["events"][0]["onset_s"] * RATE_HZ)
        if colour == "white" and before > 8000:  # what stands before the first event is noise alone
            assert rms_db(other.wav_S[:before]) == pytest.approx(rms_db(other.wav_S - events_S), abs=0.4)
    assert max(ratios) - min(ratios) > 10


def test_a_trimmed_scene_is_its_sound_alone(root: Path) -> None:
    """As a recording of its own is. All else stays, also the random numbers of scenes that are not cut."""
    tasks: dict[str, Any] = {"classify": {"categories": ["digit"]}}
    whole, cut = composer(root, tasks=tasks), composer(root, tasks=tasks, scene={"trim": 0.5})
    num_cut = 0
    for index in range(24):
        one, other = whole.item("train", index), cut.item("train", index)
        assert (one.question, one.answer) == (other.question, other.answer)
        (before,), (after,) = one.meta["events"], other.meta["events"]
        assert after["offset_s"] - after["onset_s"] == pytest.approx(before["offset_s"] - before["onset_s"], abs=1e-5)
        if other.meta["seconds"] == one.meta["seconds"]:
            np.testing.assert_array_equal(one.wav_S, other.wav_S)
            continue
        num_cut += 1
        assert after["onset_s"] == 0
        assert after["offset_s"] == pytest.approx(other.meta["seconds"])
        assert len(other.wav_S) == round(other.meta["seconds"] * RATE_HZ) < len(one.wav_S)
        start = round(before["onset_s"] * RATE_HZ)
        gain = 10 ** ((other.meta["scale_db"] - one.meta["scale_db"]) / 20)
        np.testing.assert_allclose(other.wav_S, one.wav_S[start : start + len(other.wav_S)] * gain, atol=1e-6)
    assert 4 < num_cut < 20


def test_a_background_sound_is_behind_from_end_to_end(root: Path) -> None:
    scene = {"background": {"sound": "sound", "snr_db": 3}}
    made = composer(root, tasks={"transcribe": 1}, scene=scene)
    for split in ("train", "test"):
        for index in range(6):
            item = made.item(split, index)
            ratio_db = rms_db(item.events_S[spans(item)]) - rms_db(item.background_S)
            assert ratio_db == pytest.approx(3, abs=0.1)
            np.testing.assert_allclose(item.wav_S, item.events_S + item.background_S, atol=1e-6)
            assert np.abs(item.background_S).reshape(-1, 8000).max(axis=1).min() > 0
            assert item.meta["background_clip"].split("/")[1][0] in ("4" if split == "test" else "123")
            assert item.meta["background"] in made.catalogue.labels(["sound"])


def test_the_background_asked_for_is_the_one_that_is_heard(root: Path) -> None:
    made = composer(root, tasks={"background": {"scene": {"background": {"sound": "sound"}}}})
    items = [made.item("train", index) for index in range(20)]
    assert all(item.answer == item.meta["background"] for item in items)
    assert len({item.answer for item in items}) == 5


def test_gains_are_those_of_the_manifest(root: Path) -> None:
    made = composer(root, tasks=CAPTIONS, scene={"gain_db": [-20, 6]})
    gains = []
    for index in range(15):
        item = made.item("train", index)
        for event in item.meta["events"]:
            part_S = item.wav_S[round(event["onset_s"] * RATE_HZ) : round(event["offset_s"] * RATE_HZ)]
            expected_db = 20 * np.log10(EVENT_RMS) + event["gain_db"] + item.meta["scale_db"]
            assert rms_db(part_S) == pytest.approx(expected_db, abs=0.1)
            gains.append(event["gain_db"])
    assert min(gains) < -15
    assert max(gains) > 1


def test_loud_scenes_are_scaled_as_a_whole_and_never_clip(root: Path) -> None:
    made = composer(root, tasks=CAPTIONS, scene={"gain_db": 20, "background": {"sound": "white", "snr_db": -10}})
    for index in range(5):
        item = made.item("train", index)
        assert item.meta["scale_db"] < -6
        assert np.abs(item.wav_S).max() == pytest.approx(PEAK, abs=1e-5)
    quiet = composer(root, tasks=CAPTIONS, scene={"gain_db": -40}).item("train", 0)
    assert quiet.meta["scale_db"] == 0


def test_the_room_of_the_output_has_its_reverberation_time(tmp_path: Path) -> None:
    make_sounds(tmp_path / "esc10", click)
    sources = [{"type": "esc10", "root": "esc10"}]
    scene = {"seconds": 4, "reverb": {"rt60_s": [0.2, 1.0], "drr_db": [-3, 6]}, "lead_s": [0.1, 0.5]}
    made = composer(tmp_path, sources=sources, scene=scene)
    times = []
    for index in range(12):
        item = made.item("test", index)
        direct = int(np.argmax(np.abs(item.wav_S)))
        assert abs(direct / RATE_HZ - item.meta["events"][0]["onset_s"]) < 0.05
        times.append(item.meta["rt60_s"])
        assert rt60_of(item.wav_S[direct:].astype(np.float64)) == pytest.approx(times[-1], rel=0.1)
        tail_db = 10 * np.log10(item.wav_S[direct] ** 2 / np.sum(item.wav_S[direct + 1 :].astype(np.float64) ** 2))
        assert tail_db == pytest.approx(item.meta["drr_db"], abs=0.2)
    assert max(times) - min(times) > 0.4


def test_events_lie_where_the_manifest_says_and_silences_within_their_ranges(root: Path) -> None:
    scene = {"lead_s": [0.3, 0.8], "gap_s": [0.25, 0.6], "tail_s": [0.2, 1.0], "event_s": [0.5, 1.0], "seconds": [6, 8]}
    made = composer(root, tasks={"caption": {"scene": {"num_events": [1, 4]}}}, scene=scene)
    lengths = set()
    for index in range(25):
        item = made.item("train", index)
        lengths.add(len(item.wav_S))
        assert 6 <= item.meta["seconds"] <= 8
        assert len(item.wav_S) == round(item.meta["seconds"] * RATE_HZ)
        assert not item.wav_S[~spans(item)].any()
        events = item.meta["events"]
        assert 0.3 <= events[0]["onset_s"] <= 0.801
        for one, other in pairwise(events):
            assert 0.249 <= other["onset_s"] - one["offset_s"] <= 0.601
        assert item.meta["seconds"] - events[-1]["offset_s"] >= 0.2
        assert all(0.1 <= event["offset_s"] - event["onset_s"] <= 1.0 for event in events)
    assert len(lengths) > 20


def test_captions_say_what_overlaps(root: Path) -> None:
    overlap = {"share": [0.3, 0.6], "chance": 0.5}
    made = composer(root, tasks={"caption": {"scene": {"num_events": [1, 4]}}}, scene={"overlap": overlap, "seconds": 12})
    clauses = made.catalogue.clauses_of(["sound"])
    num_pairs = num_single = 0
    for index in range(60):
        item = made.item("test", index)
        heard: list[list[str]] = []
        events = item.meta["events"]
        for number, event in enumerate(events):
            before = events[number - 1] if number else None
            if before is not None and event["onset_s"] < before["offset_s"] - 1e-3:
                heard[-1].append(event["label"])
                shorter_s = min(e["offset_s"] - e["onset_s"] for e in (before, event))
                assert 0.29 <= (before["offset_s"] - event["onset_s"]) / shorter_s <= 0.61
                assert before["onset_s"] < event["onset_s"] < before["offset_s"] < event["offset_s"]
            else:
                heard.append([event["label"]])
        assert parse_caption(item.answer, clauses) == heard
        num_pairs += sum(len(group) == 2 for group in heard)
        num_single += sum(len(group) == 1 for group in heard)
    assert num_pairs > 15
    assert num_single > 15


def test_digits_follow_each_other_whole_with_short_gaps(root: Path) -> None:
    made = composer(root, tasks={"transcribe": {"scene": {"digit_gap_s": [0.05, 0.2]}}})
    for index in range(10):
        item = made.item("train", index)
        events = item.meta["events"]
        assert " ".join(event["label"] for event in events) == item.answer
        assert len({event["gain_db"] for event in events}) == 1
        for one, other in pairwise(events):
            assert 0.049 <= other["onset_s"] - one["offset_s"] <= 0.201


def everything(root: Path, **changes: Any) -> Composer:
    """All that is drawn, drawn."""
    scene = {"overlap": {}, "background": {"sound": ["white", "pink"]}, "reverb": {"chance": 0.5}, "seconds": [8, 10]}
    tasks = {"caption": 1, "presence": 1, "transcribe": {"scene": {"background": {"sound": "sound"}}}, "pitch": 1, "first": 1}
    return composer(root, tasks=tasks, scene=scene, **changes)


def test_an_item_depends_on_seed_split_and_index_only(root: Path) -> None:
    made = everything(root, num_train=4)
    items = [made.item("train", index) for index in range(8)]
    np.random.seed(1)
    other = everything(root, num_train=1000, num_test=7)
    for index in reversed(range(8)):
        again = other.item("train", index)
        assert (again.question, again.answer, again.meta) == (items[index].question, items[index].answer, items[index].meta)
        np.testing.assert_array_equal(again.wav_S, items[index].wav_S)
    for changed in (everything(root, seed=1).item("train", 0), made.item("test", 0), made.item("train", 1)):
        assert not np.array_equal(changed.wav_S, items[0].wav_S)


def test_memory_that_holds_one_clip_gives_the_same(root: Path) -> None:
    made, small = everything(root), everything(root)
    small.store.max_bytes = 1
    for index in range(6):
        np.testing.assert_array_equal(made.item("train", index).wav_S, small.item("train", index).wav_S)
    assert made.store.num_bytes > small.store.num_bytes


def test_train_and_test_use_their_own_clips(root: Path) -> None:
    made = everything(root)
    used = {split: {e["clip"] for n in range(60) for e in made.item(split, n).meta["events"]} for split in ("train", "test")}
    assert not used["train"] & used["test"]
    assert not any("theo" in clip for clip in used["train"])
    assert any("theo" in clip for clip in used["test"])


def test_speech_is_transcribed_whole_over_sounds(root: Path, tmp_path: Path) -> None:
    texts = ["open the door", "it rains again", "good morning"]
    for split in ("train", "test"):
        examples = []
        for number, text in enumerate(texts):
            write(tmp_path / f"{split}-{number}.wav", burst(len(split) + 10 * number, 1.0 + number))
            examples.append(asked(f"{split}-{number}", [AudioPart(path=f"{split}-{number}.wav")], "?", text, "t"))
        write_manifest(tmp_path / f"{split}.jsonl", examples)
    manifests = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    sources = [SOURCES[0], {"type": "manifest", "category": "speech", **manifests}]
    scene = {"seconds": 5, "background": {"sound": "sound", "snr_db": 5}}
    made = composer(root, sources=sources, tasks={"transcribe": {"categories": ["speech"], "scene": scene}})
    items = [made.item("test", index) for index in range(12)]
    assert {item.answer for item in items} == set(texts)
    for item in items:
        (event,) = item.meta["events"]
        assert event["label"] == item.answer
        assert event["offset_s"] - event["onset_s"] == pytest.approx(1.0 + texts.index(item.answer), abs=0.03)
        assert rms_db(item.events_S[spans(item)]) - rms_db(item.background_S) == pytest.approx(5, abs=0.1)


def test_procedural_sounds_are_composed_too() -> None:
    made = composer(None, tasks={"caption": 1, "classify": 1}, scene={"num_events": [1, 3], "reverb": {}})
    for index in range(8):
        item = made.item("test", index)
        assert len(item.wav_S) == 10 * RATE_HZ
        assert all(event["clip"].startswith("procedural/") for event in item.meta["events"])
        assert item.task == "classify" or len(parse_caption(item.answer, made.catalogue.clauses_of(["sound"]))) <= 3
