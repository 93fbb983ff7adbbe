"""Clips: silence goes, stretches begin where there is sound, memory is bounded."""

from pathlib import Path

import numpy as np
import pytest

from pal_audio.data.mixing.catalogue import Clip
from pal_audio.data.mixing.clips import ClipStore, looped, stretch, trimmed
from pal_audio.errors import PalError

from .sets import RATE_HZ, burst, write


def test_silence_at_the_ends_goes() -> None:
    wave = burst(0, 0.5).astype(np.float32)
    sound = trimmed(wave, RATE_HZ, "x")
    assert 0.5 * RATE_HZ <= len(sound.wav_S) <= 0.53 * RATE_HZ
    first = np.flatnonzero(wave)[0]
    start = np.flatnonzero(sound.wav_S)[0]
    assert 0 <= start <= 2 * sound.frame
    np.testing.assert_array_equal(sound.wav_S[start : start + 1000], wave[first : first + 1000])
    with pytest.raises(PalError, match="x is silent"):
        trimmed(np.zeros(8000, np.float32), RATE_HZ, "x")


def test_a_stretch_begins_and_ends_with_sound() -> None:
    wave = np.concatenate([burst(seed, 0.1, 0.4) for seed in range(4)]).astype(np.float32)
    sound = trimmed(wave, RATE_HZ, "x")
    rng, lengths = np.random.default_rng(0), set()
    for _ in range(50):
        part = stretch(sound, 8000, rng)
        lengths.add(len(part))
        level = np.abs(part.reshape(-1, sound.frame)).max(axis=1) if len(part) % sound.frame == 0 else np.ones(3)
        assert len(part) <= 8000
        assert level[0] > 0.001
        assert level[-2:].max() > 0.001
    assert len(lengths) > 3
    assert len(stretch(sound, 10**6, rng)) == len(sound.wav_S)


def test_a_stretch_is_never_the_hum_behind_the_sound() -> None:
    rng = np.random.default_rng(0)
    wave = 0.003 * rng.standard_normal(5 * RATE_HZ).astype(np.float32)  # 30 dB below, so it counts as sounding
    wave[3 * RATE_HZ : 3 * RATE_HZ + 4000] *= 33
    sound = trimmed(wave, RATE_HZ, "x")
    parts = [stretch(sound, RATE_HZ, rng) for _ in range(60)]
    assert all(np.abs(part).max() > 0.1 for part in parts)
    assert len({float(part[len(part) // 2]) for part in parts}) > 20
    np.testing.assert_array_equal(stretch(sound, RATE_HZ, rng, from_start=True)[200:15000], wave[200:15000])


def test_a_loop_has_no_seam() -> None:
    wave = np.sin(2 * np.pi * 100 * np.arange(16000) / RATE_HZ).astype(np.float32)
    ring = looped(wave, 100_000, 5000, 1600)
    assert len(ring) == 100_000
    assert np.abs(np.diff(ring)).max() < 1.5 * np.abs(np.diff(wave)).max()
    levels = np.sqrt(np.mean(ring.reshape(-1, 1000) ** 2, axis=1))
    assert levels.min() > 0.5


def test_memory_is_bounded_and_what_was_used_last_is_kept(tmp_path: Path) -> None:
    clips = []
    for seed in range(4):
        write(tmp_path / f"{seed}.wav", burst(seed, 0.5))
        clips.append(Clip(f"{seed}", 0, "x", "sound", str(tmp_path / f"{seed}.wav")))
    store = ClipStore(RATE_HZ, max_bytes=80_000)  # two of them
    first = store.sound(clips[0])
    store.sound(clips[1])
    assert store.sound(clips[0]) is first
    store.sound(clips[2])
    assert store.num_bytes <= 80_000
    assert store.sound(clips[0]) is first, "the one used least lately went"
    for clip in clips:
        store.sound(clip)
        assert store.num_bytes <= 80_000
