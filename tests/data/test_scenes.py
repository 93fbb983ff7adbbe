"""Scenes: functions of (seed, split, index), exact labels, balance that leaves the text mute."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from pal_audio.data import Example, Message, chance, scenes
from pal_audio.data.balance import BLOCK
from pal_audio.data.scenes import NUMBER_WORDS, SCENE_TASKS, WORDINGS, Scene, SceneSettings, answers, scene
from pal_audio.data.sounds import KINDS, NUM_CELLS, cell_split, render

EVERY_TASK = dict.fromkeys(SCENE_TASKS, 1.0)
CLEAN = SceneSettings(tasks=EVERY_TASK, snr_db=None)


@pytest.fixture(scope="module")
def clean_scenes() -> list[Scene]:
    return [scene(5, "test", index, CLEAN) for index in range(BLOCK)]


def test_an_item_depends_on_seed_split_and_index_only() -> None:
    settings = SceneSettings(tasks=EVERY_TASK)
    forwards = [scene(3, "train", index, settings) for index in range(6)]
    np.random.seed(1)
    backwards = [scene(3, "train", index, settings) for index in reversed(range(6))][::-1]
    reordered = SceneSettings(tasks=dict(reversed(EVERY_TASK.items())))
    for index, (one, other) in enumerate(zip(forwards, backwards, strict=True)):
        assert (one.question, one.answer, one.events) == (other.question, other.answer, other.events)
        np.testing.assert_array_equal(one.wav_S, other.wav_S)
        np.testing.assert_array_equal(one.wav_S, scene(3, "train", index, reordered).wav_S)
    for seed, split, index in ((4, "train", 0), (3, "test", 0), (3, "train", 1)):
        assert not np.array_equal(scene(seed, split, index, settings).wav_S, forwards[0].wav_S)


def test_another_process_composes_the_same_bytes() -> None:
    code = (
        "import hashlib; from pal_audio.data import scene, SceneSettings;"
        "print(hashlib.sha256(scene(9, 'test', 41, SceneSettings()).wav_S.tobytes()).hexdigest())"
    )
    here = hashlib.sha256(scene(9, "test", 41, SceneSettings()).wav_S.tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert there.stdout.strip() == here


def test_the_room_needs_no_torch() -> None:
    code = "import sys, pal_audio.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_events_lie_where_the_labels_say(clean_scenes: list[Scene]) -> None:
    """Outside the events there is silence, inside each is exactly its source at one level."""
    for item in clean_scenes:
        rest_S = item.wav_S.copy()
        end_before_s = -1.0
        for event in item.events:
            start, end = round(event.start_s * 16000), round(event.end_s * 16000)
            source_S = render(event.kind, event.params, 16000)
            assert end - start == len(source_S)
            gain = np.max(np.abs(item.wav_S[start:end])) / np.max(np.abs(source_S))
            np.testing.assert_allclose(item.wav_S[start:end], gain * source_S, atol=1e-6)
            assert event.start_s >= end_before_s + (0.1 if end_before_s >= 0 else 0)
            end_before_s = event.end_s
            rest_S[start:end] = 0
        assert not rest_S.any()
        assert end_before_s <= 3.0


def test_counts_can_be_read_off_the_envelope(clean_scenes: list[Scene]) -> None:
    counted = [item for item in clean_scenes if item.task == "count"]
    assert {item.answer for item in counted} == set(NUMBER_WORDS)
    for item in counted:
        loud = np.flatnonzero(np.abs(item.wav_S) > 0)
        num_runs = 1 + np.count_nonzero(np.diff(loud) > 0.1 * 16000)
        assert NUMBER_WORDS[num_runs - 1] == item.answer
        assert len({event.kind for event in item.events}) == 1
        assert len({tuple(event.params.values.items()) for event in item.events}) == 1


def test_answers_follow_from_the_events(clean_scenes: list[Scene]) -> None:
    for item in clean_scenes:
        names = [KINDS[event.kind].answer for event in item.events]
        assert names == [KINDS[e.kind].answer for e in sorted(item.events, key=lambda e: e.start_s)]
        if item.task == "presence":
            asked = [name for name in answers("classify") if item.question in [w.format(name) for w in WORDINGS["presence"]]]
            assert len(asked) == 1
            assert item.answer == ("yes" if asked[0] in names else "no")
        elif item.task != "count":
            assert len(names) == len(set(names)) == (1 if item.task == "classify" else 2)
            assert item.answer == names[-1 if item.task == "last" else 0]


def test_length_of_an_event_does_not_give_the_count_away() -> None:
    settings = SceneSettings(tasks={"count": 1}, snr_db=None)
    lengths = {word: [] for word in NUMBER_WORDS}
    for index in range(2 * BLOCK):
        item = scene(0, "train", index, settings)
        lengths[item.answer].append(item.events[0].end_s - item.events[0].start_s)
    means = [np.mean(values) for values in lengths.values()]
    assert max(means) - min(means) < 0.1


def test_sources_of_a_split_stay_in_its_cells() -> None:
    for split in ("train", "test"):
        for index in range(40):
            for event in scene(1, split, index, CLEAN).events:
                for name, value in event.params.values.items():
                    place = KINDS[event.kind].ranges[name].unit(value) * NUM_CELLS
                    assert cell_split(int(place)) == split


def test_background_is_as_soft_as_asked() -> None:
    clean, noisy = (SceneSettings(snr_db=snr_db) for snr_db in (None, (20.0, 20.0)))
    for index in range(10):
        pure_S, mixed_S = (scene(2, "train", index, settings).wav_S.astype(float) for settings in (clean, noisy))
        silent = pure_S == 0
        noise_rms = np.sqrt(np.mean(mixed_S[silent] ** 2))
        softest = min(scene(2, "train", index, clean).events, key=lambda event: event.gain_db)
        stretch_S = mixed_S[round(softest.start_s * 16000) : round(softest.end_s * 16000)]
        assert 20 * np.log10(np.sqrt(np.mean(stretch_S**2)) / noise_rms) > 14
        assert 0.2 < np.max(np.abs(mixed_S)) < 0.95


def questions(split: str, num: int, tasks: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """Questions and answers alone: what is asked does not depend on the sound, so none is made."""
    monkeypatch.setattr(scenes, "_compose", lambda *_, **__: (np.zeros(1, np.float32), ()))
    items = [scene(0, split, index, SceneSettings(tasks=tasks)) for index in range(num)]
    return [
        Example(
            id=i, messages=[Message(role="user", content=s.question), Message(role="assistant", content=s.answer)], task=s.task
        )
        for i, s in enumerate(items)
    ]


def test_text_alone_gets_no_further_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (questions(split, num, scenes.DEFAULT_TASKS, monkeypatch) for split, num in (("train", 4000), ("test", 300)))
    assert chance(train, test) <= 0.13
    for task in scenes.DEFAULT_TASKS:
        ours = [[example for example in examples if example.task == task] for examples in (train, test)]
        assert len(ours[1]) == pytest.approx(300 * scenes.DEFAULT_TASKS[task], abs=1)
        assert chance(*ours) <= (0.25 if task == "count" else 0.09)
        counts = Counter(example.answer for example in ours[0])
        assert set(counts) == set(answers(task))
        assert max(counts.values()) - min(counts.values()) <= 1
        for wording in WORDINGS[task]:
            under = Counter(example.answer for example in ours[0] if example.question == wording)
            assert max(under.values()) <= 1.3 * min(under.values())


def test_presence_is_balanced_for_every_sound_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = questions("train", 2000, {"presence": 1.0}, monkeypatch)
    by_question: dict[str, Counter[str | None]] = {}
    for example in examples:
        by_question.setdefault(example.question, Counter())[example.answer] += 1
    assert len(by_question) == len(WORDINGS["presence"]) * len(KINDS)
    assert all(abs(counts["yes"] - counts["no"]) <= 1 for counts in by_question.values())


@pytest.mark.parametrize("seconds", [2.0, 30.0])
def test_events_fit_into_short_and_long_scenes(seconds: float) -> None:
    settings = SceneSettings(seconds=seconds, tasks=EVERY_TASK)
    for index in range(BLOCK if seconds < 3 else 10):
        item = scene(0, "train", index, settings)
        assert len(item.wav_S) == seconds * 16000
        assert item.events[-1].end_s <= seconds


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"second": 3}, "did you mean 'seconds'"),
        ({"seconds": 1}, "greater than or equal to 2"),
        ({"tasks": {"classifi": 1}}, "unknown task 'classifi'"),
        ({"tasks": {"count": 0}}, "must be positive"),
        ({"tasks": {"count": 1, "first": float("nan")}}, "finite number"),
        ({"tasks": {"count": 1, "first": 0.001}}, "share below 2%"),
        ({"snr_db": (20, 10)}, "lowest and highest"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SceneSettings(**given)
