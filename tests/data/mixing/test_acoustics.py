"""Noise, rooms and levels, measured against their definitions."""

import numpy as np
import pytest

from pal_audio.data.mixing import acoustics

RATE_HZ = 16000


def rt60_of(response_S: np.ndarray) -> float:
    """Reverberation time by Schroeder's backward integration, from 8 to 33 dB below the start; above, the direct sound counts."""
    left_db = 10 * np.log10(np.cumsum(response_S[::-1] ** 2)[::-1] / np.sum(response_S**2) + 1e-20)
    inside = (left_db < -8) & (left_db > -33)
    slope, _ = np.polyfit(np.flatnonzero(inside) / RATE_HZ, left_db[inside], 1)
    return float(-60 / slope)


@pytest.mark.parametrize("rt60_s", [0.1, 0.3, 0.8, 2.0])
def test_a_room_decays_as_asked(rt60_s: float) -> None:
    for seed in range(5):
        response_S = acoustics.impulse_response(np.random.default_rng(seed), rt60_s, 6.0, RATE_HZ)
        assert rt60_of(response_S) == pytest.approx(rt60_s, rel=0.1)
        assert response_S[0] == 1
        assert 10 * np.log10(1 / np.sum(response_S[1:] ** 2)) == pytest.approx(6.0)
        assert len(response_S) == round(rt60_s * RATE_HZ)


def test_reverberation_is_convolution() -> None:
    rng = np.random.default_rng(0)
    for num in (1, 100, 1000):
        wav_S, response_S = rng.standard_normal(num), rng.standard_normal(77)
        np.testing.assert_allclose(acoustics.reverberate(wav_S, response_S), np.convolve(wav_S, response_S)[:num], atol=1e-9)


def test_noise_has_its_colour_and_unit_power() -> None:
    for colour, fall_db in (("white", 0.0), ("pink", -3.01)):
        wav_S = acoustics.noise(np.random.default_rng(0), 2**18, RATE_HZ, colour)
        assert acoustics.power(wav_S) == pytest.approx(1)
        spectrum = np.abs(np.fft.rfft(wav_S)) ** 2
        hz = np.fft.rfftfreq(len(wav_S), 1 / RATE_HZ)
        levels = [10 * np.log10(spectrum[(hz >= low) & (hz < 2 * low)].mean()) for low in (125, 250, 500, 1000, 2000)]
        np.testing.assert_allclose(np.diff(levels), fall_db, atol=0.35)
