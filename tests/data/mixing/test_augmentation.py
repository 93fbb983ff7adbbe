"""What changes training sounds: measured on the sound, alike where it must be, and never in the test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pal_audio.data.mixing.augmentation import Augment, LowPass, SoundChange, low_passed
from pal_audio.errors import PalError

from .sets import RATE_HZ, SOURCES, make_all, mix
from .test_compose import composer

AUGMENT: dict[str, Any] = {
    "speed": {"factor": [0.8, 1.25]},
    "tilt": {"db_per_octave": [-3, 3]},
    "filter": {"gain_db": [-9, 9]},
    "low_pass": {"chance": 1},
    "level_db": [-20, -10],
}
DIGITS = {"transcribe": {"scene": {"num_digits": 3}}}
BEHIND = {"background": {"categories": ["digit"], "scene": {"num_digits": 3, "background": {"sound": "sound", "snr_db": 10}}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    wav_S: np.ndarray = np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ).astype(np.float32)
    return wav_S


def level_db(wav_S: np.ndarray) -> float:
    """Of its middle, where no end is heard."""
    middle_S = wav_S[len(wav_S) // 4 : -len(wav_S) // 4].astype(np.float64)
    return float(10 * np.log10(np.mean(middle_S**2)))


@pytest.mark.parametrize("speed", [0.8, 1.25, 2.0])
def test_speed_moves_pitch_and_length(speed: float) -> None:
    changed_S = SoundChange(speed=speed)(tone(1000), RATE_HZ)
    assert abs(len(changed_S) - RATE_HZ / speed) <= 1
    peak_hz = np.argmax(np.abs(np.fft.rfft(changed_S))) * RATE_HZ / len(changed_S)
    assert peak_hz == pytest.approx(1000 * speed, abs=2)
    assert SoundChange(speed=speed).semitones == pytest.approx(12 * np.log2(speed))


def test_a_tilt_is_so_many_decibels_an_octave() -> None:
    gains_db = [level_db(SoundChange(tilt_db=3)(tone(hz), RATE_HZ)) - level_db(tone(hz)) for hz in (500, 1000, 4000)]
    assert gains_db == pytest.approx([-3, 0, 6], abs=0.05)


def test_a_filter_has_its_gains_at_points_of_equal_distance_in_mel() -> None:
    change = SoundChange(gains_db=(0, 6, -6))
    middle_hz = 700 * (np.sqrt(1 + RATE_HZ / 2 / 700) - 1)
    quarter_hz = 700 * ((1 + RATE_HZ / 2 / 700) ** 0.25 - 1)
    gains_db = [level_db(change(tone(hz), RATE_HZ)) - level_db(tone(hz)) for hz in (quarter_hz, middle_hz, RATE_HZ / 2 - 2)]
    assert gains_db == pytest.approx([3, 6, -6], abs=0.05)
    both = SoundChange(tilt_db=3, gains_db=(0, 6, -6))(tone(middle_hz), RATE_HZ)
    assert level_db(both) - level_db(tone(middle_hz)) == pytest.approx(6 + 3 * np.log2(middle_hz / 1000), abs=0.05)
    assert both.dtype == np.float32


def test_a_low_pass_is_3_db_down_at_its_cutoff_and_nothing_passes_far_above() -> None:
    def lost_db(hz: float, order: int) -> float:
        return level_db(low_passed(tone(hz).astype(np.float64), 3000, order, RATE_HZ)) - level_db(tone(hz))

    assert [lost_db(hz, 8) for hz in (1000, 3000, 3300)] == pytest.approx([0, -3.01, -7.4], abs=0.1)
    assert lost_db(6000, 8) < -45
    assert [lost_db(hz, 64) for hz in (2800, 3000, 3300)] == pytest.approx([0, -3.01, -53], abs=0.2)


@pytest.mark.filterwarnings("error")
def test_the_steepest_low_pass_at_the_lowest_frequency_leaves_what_is_finite() -> None:
    """Its gain far above is one over infinity."""
    assert np.isfinite(low_passed(tone(1000).astype(np.float64), 1e-3, 100, RATE_HZ)).all()


def test_orders_are_drawn_from_lowest_to_highest_and_change_no_other_draw_where_they_are_one(root: Path) -> None:
    passes = ({"chance": 1, "order": order} for order in (8, [8, 10]))
    one, many = (composer(root, tasks={"first": 1}, augment={"low_pass": low_pass}) for low_pass in passes)
    orders = [made.item("train", index).meta["low_pass_order"] for made in (one, many) for index in range(20)]
    assert set(orders[:20]) == {8}
    assert set(orders[20:]) == {8, 9, 10}
    assert one.item("train", 0).meta["low_pass_hz"] == many.item("train", 0).meta["low_pass_hz"]
    augment, drawn = Augment(low_pass=LowPass(chance=1), level_db=(-20, -10)), np.random.default_rng(3)
    drawn.uniform()  # whether
    wanted = {"low_pass_hz": drawn.uniform(3400, 7000), "low_pass_order": 8, "level_db": drawn.uniform(-20, -10)}
    assert augment.of_scene(np.random.default_rng(3)) == wanted


def test_the_test_is_never_changed_and_training_is(root: Path) -> None:
    tasks = {"first": 1, **DIGITS}
    plain, changed = composer(root, tasks=tasks), composer(root, tasks=tasks, augment=AUGMENT)
    for index in range(10):
        one, other = plain.item("test", index), changed.item("test", index)
        assert np.array_equal(one.wav_S, other.wav_S)
        assert one.meta == other.meta
        one, other = plain.item("train", index), changed.item("train", index)
        assert (one.question, one.answer) == (other.question, other.answer)
        assert [event["clip"] for event in one.meta["events"]] == [event["clip"] for event in other.meta["events"]]
        assert {"speed", "tilt_db", "gains_db"} <= other.meta["events"][0].keys()
        assert len(other.meta["events"][0]["gains_db"]) == 5
        assert all(-9 <= gain <= 9 for gain in other.meta["events"][0]["gains_db"])
        assert -20 <= other.meta["level_db"] <= -10
        assert 3400 <= other.meta["low_pass_hz"] <= 7000
        assert other.meta["low_pass_order"] == 8


def test_words_of_a_string_and_two_notes_change_alike_and_other_sounds_do_not(root: Path) -> None:
    for tasks, alike in ((DIGITS, True), ({"pitch": {"scene": {"seconds": 4}}}, True), ({"first": 1}, False)):
        made = composer(root, tasks=tasks, augment={"speed": {"factor": [0.8, 1.25]}})
        for index in range(6):
            speeds = {event["speed"] for event in made.item("train", index).meta["events"]}
            assert (len(speeds) == 1) == alike


def test_a_note_is_as_high_as_its_manifest_says(root: Path) -> None:
    tasks = {"classify": {"categories": ["instrument"]}}
    plain, changed = (composer(root, tasks=tasks, augment=a) for a in (None, {"speed": {"factor": [0.8, 1.25]}}))
    for index in range(4):
        item = changed.item("train", index)
        (event,) = item.meta["events"]
        before = plain.item("train", index).meta["events"][0]["pitch"]
        assert event["pitch"] == pytest.approx(before + 12 * np.log2(event["speed"]), abs=0.01)
        inside_S = item.wav_S[round(event["onset_s"] * RATE_HZ) : round(event["offset_s"] * RATE_HZ)]
        spectrum = np.abs(np.fft.rfft(inside_S * np.hanning(len(inside_S)), 8 * RATE_HZ))
        assert 69 + 12 * np.log2(np.argmax(spectrum) / 8 / 440) == pytest.approx(event["pitch"], abs=0.2)


def test_a_level_is_that_of_the_whole_scene(root: Path) -> None:
    scene = {"gain_db": -10, "background": {"sound": "white", "snr_db": 20}}
    plain, quiet = (composer(root, scene=scene, augment=a) for a in (None, {"level_db": -15}))
    one, other = plain.item("train", 0), quiet.item("train", 0)
    assert one.meta["scale_db"] == other.meta["scale_db"] == 0
    np.testing.assert_allclose(other.wav_S, one.wav_S * 10 ** (-15 / 20), rtol=1e-4, atol=1e-7)


def test_procedural_sounds_keep_the_parameters_of_their_split() -> None:
    made = composer(None, augment=AUGMENT)
    assert all("speed" not in made.item("train", index).meta["events"][0] for index in range(5))


def test_digits_have_their_transcript(root: Path) -> None:
    item = composer(root, tasks=DIGITS).item("train", 0)
    assert item.meta["transcript"] == item.answer
    assert "transcript" not in composer(root, tasks={"first": 1}).item("train", 0).meta


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"sped": {}}, "did you mean 'speed'"),
        ({"speed": {"factor": [0.4, 1]}}, "speed.factor"),
        ({"speed": {"factor": [1.2, 0.9]}}, "lowest and highest"),
        ({"speed": {"factor_of": {"instrument": [0.9, 3]}}}, "speed.factor_of.instrument"),
        ({"speed": {"factor_of": {"digit": 1.2}, "categories": ["sound"]}}, "speed.*factor_of names digit"),
        ({"low_pass": {"cutoff_hz": -5}}, "cutoff_hz"),
        ({"low_pass": {"order": 101}}, "low_pass.order"),
    ],
)
def test_what_is_wrong_is_named(augment: dict[str, Any], words: str) -> None:
    from .test_config import parsed

    with pytest.raises(PalError, match=words):
        parsed(augment=augment)


def test_a_change_may_be_of_some_categories_alone(root: Path) -> None:
    """The draws stay, so that the other sounds change as they would have."""
    everything, some, flat = (
        composer(root, tasks={"first": 1, **DIGITS, **BEHIND}, augment={**AUGMENT, "tilt": tilt, "filter": gains})
        for tilt, gains in (
            ({"db_per_octave": [-3, 3]}, {"gain_db": [-9, 9]}),
            ({"db_per_octave": [-3, 3], "categories": ["digit"]}, {"gain_db": [-9, 9], "categories": ["digit"]}),
            ({"db_per_octave": [0, 0]}, {"gain_db": [0, 0]}),
        )
    )
    seen = set()
    for index in range(30):
        all_tilted, digits_tilted = everything.item("train", index), some.item("train", index)
        for one, other in zip(all_tilted.meta["events"], digits_tilted.meta["events"], strict=True):
            for key in ("tilt_db", "gains_db"):
                drawn = one.pop(key)
                assert other.pop(key, None) == (drawn if one["category"] == "digit" else None)
            assert one == other
            seen.add(one["category"])
        if digits_tilted.task == "background":
            behind_S, as_it_is_S = digits_tilted.background_S, flat.item("train", index).background_S
            assert np.allclose(behind_S / np.std(behind_S), as_it_is_S / np.std(as_it_is_S), atol=1e-4)
            seen.add("behind")
    assert {"digit", "sound", "behind"} <= seen


def test_a_category_may_have_its_own_factors(root: Path) -> None:
    """One draw lies as far between either two, and the other categories change as they would have."""
    speed, tasks = {"factor": [0.8, 1.25]}, {"first": {"categories": ["sound", "instrument"]}}
    alike, apart = (
        composer(root, tasks=tasks, augment={"speed": speed | more}) for more in ({}, {"factor_of": {"instrument": [0.5, 2.0]}})
    )
    seen = set()
    for index in range(30):
        for one, other in zip(*(made.item("train", index).meta["events"] for made in (alike, apart)), strict=False):
            is_instrument = one["category"] == "instrument"
            wanted = 0.5 + (one["speed"] - 0.8) / 0.45 * 1.5 if is_instrument else one["speed"]
            assert other["speed"] == pytest.approx(wanted, abs=5e-4)
            seen.add(one["category"])
    assert {"sound", "instrument"} <= seen


def test_factors_of_categories_without_recordings_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"augment.speed.factor_of: no source has recordings of the category 'bird'"):
        mix(root, tasks={"first": 1}, augment={"speed": {"factor_of": {"bird": [0.9, 1.1]}}})


@pytest.mark.parametrize("change", ["speed", "tilt", "filter"])
def test_categories_without_recordings_are_refused(root: Path, change: str) -> None:
    with pytest.raises(
        ValueError, match=rf"augment.{change}.categories: no source has .* 'bird'; there are sound, digit, instrument"
    ):
        mix(root, tasks={"first": 1}, augment={change: {"categories": ["bird"]}})
    sources = [{"type": "procedural", "category": "made"}, *SOURCES]
    with pytest.raises(ValueError, match="its sounds are procedural, which are never changed"):
        mix(root, sources=sources, tasks={"first": 1}, augment={change: {"categories": ["made"]}})


@pytest.mark.parametrize(
    "augment", [{"filter": {"gain_db": [0, 1000]}}, {"tilt": {"db_per_octave": [-300, 3]}}, {"filter": {"gain_db": [3, -3]}}]
)
def test_gains_have_limits(root: Path, augment: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"-?60|lowest"):
        mix(root, tasks={"first": 1}, augment=augment)
