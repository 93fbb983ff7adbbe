"""Levels, noise and rooms. Shape suffix: S samples.

Source: textbook definitions; the room is white noise under an exponential envelope, after J. A. Moorer, "About This Reverberation
Business" (1979).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pal_audio.data.sounds import coloured_noise

Wave = npt.NDArray[np.float64]
_LOWEST_HZ = 20.0  # below it pink noise is flat


def gain(db: float) -> float:
    """Factor of amplitude for decibels."""
    return float(10 ** (db / 20))


def power(wav_S: npt.NDArray[np.floating]) -> float:
    """Mean square."""
    return float(np.mean(np.square(wav_S, dtype=np.float64)))


def noise(rng: np.random.Generator, num_samples: int, rate_hz: int, colour: str) -> Wave:
    """Gaussian noise (S,) of unit RMS: "white", or "pink", which falls by 3 dB an octave."""
    if colour == "white":
        wav_S = rng.standard_normal(num_samples)
        return np.asarray(wav_S / np.sqrt(power(wav_S)))
    assert colour == "pink"
    return coloured_noise(rng, num_samples, rate_hz, lambda hz: np.maximum(hz, _LOWEST_HZ) ** -0.5)


def impulse_response(rng: np.random.Generator, rt60_s: float, drr_db: float, rate_hz: int) -> Wave:
    """A room's answer to a click, (S,): 1 at once, then noise that has fallen by 60 dB after `rt60_s`.

    Args:
        rng: of the noise.
        rt60_s: seconds.
        drr_db: energy of the direct sound to that of the tail.
        rate_hz: samples a second.
    """
    time_s = np.arange(1, max(2, round(rt60_s * rate_hz))) / rate_hz
    tail_S = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / rt60_s)
    tail_S *= gain(-drr_db) / np.sqrt(np.sum(tail_S**2))
    return np.concatenate([[1.0], tail_S])


def reverberate(wav_S: Wave, response_S: Wave) -> Wave:
    """Convolve, and cut to the length of the first."""
    num_fft = _fast_length(len(wav_S) + len(response_S) - 1)
    product = np.fft.rfft(wav_S, num_fft) * np.fft.rfft(response_S, num_fft)
    return np.asarray(np.fft.irfft(product, num_fft)[: len(wav_S)])


def _fast_length(num_samples: int) -> int:
    """The next length that a power of two or three times one gives."""
    power_of_two = 1 << (num_samples - 1).bit_length()
    three_quarters = power_of_two // 4 * 3
    return three_quarters if three_quarters >= num_samples else power_of_two


def background_scale(foreground_S: Wave, sounds_S: npt.NDArray[np.bool_], background_S: Wave, snr_db: float) -> float:
    """Factor for a background: its power over all time is `snr_db` below the foreground's over the time in which that sounds."""
    return float(np.sqrt(power(foreground_S[sounds_S]) / power(background_S)) * gain(-snr_db))
