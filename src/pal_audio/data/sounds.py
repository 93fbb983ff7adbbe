"""Fourteen kinds of sounds made by arithmetic, each with a few continuous parameters.

The parameter space is split by construction. Every parameter's range is cut into `NUM_CELLS` equal cells (of its logarithm
where the range is logarithmic). Cells whose number leaves remainder 2 on division by 3 are `test` cells, the others `train`:

    cell   0      1      2      3      4      5      6      7      8      9      10
           train  train  TEST   train  train  TEST   train  train  TEST   train  train

`draw(kind, split, rng)` takes *every* parameter from cells of that split, and never from the outer `CELL_MARGIN` of a cell. So
not only the combination but each single value of a test sound lies between trained values, at least two margins from the nearest.
Noise inside a sound comes from `SoundParams.seed`, drawn from the item's generator.

Shape suffix: S samples.
Source: our choice; bell partials after J.-C. Risset's additive bell, the plucked string after Karplus and Strong (1983).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from pal_audio.errors import PalError

Split = Literal["train", "test"]
Wave = npt.NDArray[np.float64]
NUM_CELLS = 11
CELL_MARGIN = 0.1
PEAK = 0.99
MIN_RATE_HZ = 16000  # the highest partials that tell kinds apart need it
_TAIL_DB = -50.0  # a sound ends where it falls this far below its peak
_FADE_IN_S, _FADE_OUT_S = 0.002, 0.01


@dataclass(frozen=True)
class Range:
    """Interval of a parameter; `log` spaces values evenly in ratio."""

    low: float
    high: float
    log: bool = True

    def value(self, unit: float) -> float:
        """Map a place in [0, 1] to the parameter's value."""
        if self.log:
            return float(self.low * (self.high / self.low) ** unit)
        return self.low + (self.high - self.low) * unit

    def unit(self, value: float) -> float:
        """Inverse of `value`."""
        if self.log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class SoundParams:
    """One source: values by parameter name (units in the names), the longest it may last, and the seed of its noise."""

    values: Mapping[str, float]
    duration_s: float = 1.5
    seed: int = 0


def coloured_noise(rng: np.random.Generator, num_samples: int, rate_hz: int, gain: Callable[[Wave], Wave]) -> Wave:
    """Draw Gaussian noise of unit RMS, (S,), whose amplitude spectrum is `gain` of the frequency in Hz (never 0)."""
    num_fft = 1 << (num_samples - 1).bit_length()  # a power of two: other lengths are many times slower
    hz = np.maximum(np.arange(num_fft // 2 + 1, dtype=np.float32) * (rate_hz / num_fft), 1.0)
    spectrum = rng.standard_normal(2 * len(hz), dtype=np.float32).view(np.complex64) * gain(hz)
    noise_S = np.fft.irfft(spectrum, num_fft)[:num_samples].astype(np.float64)
    return np.asarray(noise_S / np.sqrt(np.mean(noise_S**2)))


@dataclass
class Canvas:
    """What a synthesis function draws on: time axis, noise and oscillators of one sound."""

    num_samples: int
    rate_hz: int
    rng: np.random.Generator = field(repr=False)

    @cached_property
    def t_S(self) -> Wave:
        return np.asarray(np.arange(self.num_samples) / self.rate_hz)

    def tone(self, frequency_hz: Wave | float, harmonics: Mapping[int, float] | Mapping[float, float] | None = None) -> Wave:
        """Sum of sinusoids at multiples of a (moving) frequency: `harmonics` maps multiple to amplitude. Aliases are left out."""
        phase_S = 2 * np.pi * np.cumsum(np.broadcast_to(frequency_hz, self.num_samples)) / self.rate_hz
        top_hz = float(np.max(frequency_hz))
        wave_S = np.zeros(self.num_samples)
        for multiple, amplitude in (harmonics or {1.0: 1.0}).items():
            if multiple * top_hz < 0.48 * self.rate_hz:
                wave_S += amplitude * np.sin(multiple * phase_S)
        return wave_S

    def noise(self, centre_hz: float, octaves: float) -> Wave:
        """Noise of unit RMS, its spectrum a bell of standard deviation `octaves` on the log-frequency axis."""
        return coloured_noise(
            self.rng, self.num_samples, self.rate_hz, lambda hz: np.exp(-0.5 * (np.log2(hz / centre_hz) / octaves) ** 2)
        )

    def decay(self, time_constant_s: float, start_s: float = 0.0) -> Wave:
        """Exponential decay that begins at `start_s`; zero before."""
        late_S = self.t_S - start_s
        return np.asarray(np.where(late_S >= 0, np.exp(-np.maximum(late_S, 0) / time_constant_s), 0.0))

    def strokes(self, rate_hz: float, jitter: float, time_constant_s: float) -> Wave:
        """Train of decays, `rate_hz` a second, each moved by up to `jitter` of the period."""
        period_s = 1 / rate_hz
        starts_s = np.arange(0, self.num_samples / self.rate_hz, period_s)
        starts_s = starts_s + jitter * period_s * self.rng.uniform(0, 1, len(starts_s))
        envelope_S = np.zeros(self.num_samples)
        length = min(self.num_samples, int(8 * time_constant_s * self.rate_hz) + 1)
        stroke_S = np.exp(-self.t_S[:length] / time_constant_s)
        for start in (starts_s * self.rate_hz).astype(int):
            end = min(start + length, self.num_samples)
            envelope_S[start:end] += stroke_S[: max(end - start, 0)]
        return envelope_S


def _bell(c: Canvas, pitch_hz: float, decay_s: float, strike: float) -> Wave:
    wave_S = np.zeros(c.num_samples)
    for order, ratio in enumerate((0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.76, 4.07)):
        if ratio * pitch_hz < 0.48 * c.rate_hz:
            amplitude = strike ** (order / 3)
            wave_S += amplitude * np.sin(2 * np.pi * ratio * pitch_hz * c.t_S) * c.decay(decay_s / (0.6 + 0.4 * ratio))
    return wave_S


def _siren(c: Canvas, low_hz: float, sweep_ratio: float, sweep_rate_hz: float, brightness: float) -> Wave:
    rise_S = 0.5 - 0.5 * np.cos(2 * np.pi * sweep_rate_hz * c.t_S + c.rng.uniform(0, 2 * np.pi))
    return c.tone(low_hz * sweep_ratio**rise_S, {k: brightness ** (k - 1) for k in (1, 2, 3, 4)})


def _dog(c: Canvas, pitch_hz: float, length_s: float, roughness: float) -> Wave:
    shape_S = np.clip(c.t_S / 0.02, 0, 1) * np.clip((length_s - c.t_S) / (0.7 * length_s), 0, 1)
    glide_hz = pitch_hz * (0.75 + 0.5 * np.clip(1 - c.t_S / length_s, 0, 1))
    voice_S = c.tone(glide_hz, {k: np.exp(-0.5 * ((k * pitch_hz - 1000) / 500) ** 2) + 0.15 / k for k in range(1, 9)})
    return shape_S * (voice_S / (np.std(voice_S) + 1e-12) + roughness * c.noise(1200, 0.7))


def _bird(c: Canvas, centre_hz: float, sweep_ratio: float, trill_rate_hz: float) -> Wave:
    phase_S = (c.t_S * trill_rate_hz) % 1.0
    chirp_S: Wave = c.tone(centre_hz * sweep_ratio ** (0.5 - phase_S)) * np.sin(np.pi * np.clip(phase_S / 0.7, 0, 1)) ** 2
    return chirp_S


def _rain(c: Canvas, centre_hz: float, octaves: float, drops_hz: float) -> Wave:
    return c.noise(centre_hz, octaves) + 1.5 * c.noise(1.5 * centre_hz, 0.6) * c.strokes(drops_hz, 1.0, 0.002)


def _clock(c: Canvas, rate_hz: float, ring_hz: float, decay_s: float) -> Wave:
    return c.strokes(rate_hz, 0.0, decay_s) * (c.tone(ring_hz, {1: 1.0, 1.62: 0.6}) + 0.3 * c.noise(ring_hz, 0.5))


def _engine(c: Canvas, fire_hz: float, fall: float, roughness: float) -> Wave:
    wander_S = np.interp(c.t_S, np.arange(0, 20, 0.1), 1 + 0.02 * c.rng.standard_normal(200))
    hum_S = c.tone(fire_hz * wander_S, {k: k**-fall * (1.6 if k % 2 == 0 else 1.0) for k in range(1, 15)})
    beat_S = 1 + 0.3 * np.sin(np.pi * fire_hz * c.t_S)
    return beat_S * (hum_S / np.std(hum_S) + roughness * c.noise(180, 0.8))


def _guitar(c: Canvas, pitch_hz: float, brightness: float, decay_s: float) -> Wave:
    period = max(2, round(c.rate_hz / pitch_hz))
    string = c.rng.uniform(-1, 1, period)
    for _ in range(round(3 / brightness)):
        string = 0.5 * (string + np.roll(string, 1))
    string -= string.mean()
    loss = np.exp(-period / c.rate_hz / decay_s)
    periods = np.empty((-(-c.num_samples // period), period))
    for row in periods:
        row[:] = string
        string = loss * (0.5 + 0.4 * brightness) * string + loss * (0.5 - 0.4 * brightness) * np.roll(string, 1)
    return periods.reshape(-1)[: c.num_samples]


def _drum(c: Canvas, pitch_hz: float, decay_s: float, snap: float) -> Wave:
    skin_S = c.tone(pitch_hz * (1 + 1.5 * np.exp(-c.t_S / 0.02))) * c.decay(decay_s)
    return skin_S + snap * c.noise(500, 0.8) * c.decay(0.012)


def _whistle(c: Canvas, pitch_hz: float, vibrato_hz: float, length_s: float, breath: float) -> Wave:
    shape_S = np.clip(c.t_S / 0.03, 0, 1) * np.clip((length_s - c.t_S) / 0.04, 0, 1)
    tone_S = c.tone(pitch_hz * (1 + 0.015 * np.sin(2 * np.pi * vibrato_hz * c.t_S)), {1: 1.0, 2: 0.06})
    return shape_S * (tone_S + breath * c.noise(pitch_hz, 0.4))


def _telephone(c: Canvas, pitch_hz: float, ratio: float, warble_hz: float) -> Wave:
    high_S = np.sin(2 * np.pi * warble_hz * c.t_S) > 0
    return c.tone(np.where(high_S, pitch_hz * ratio, pitch_hz), {1: 1.0, 3: 0.35, 5: 0.15})


def _drop(c: Canvas, start_hz: float, rise: float, decay_s: float) -> Wave:
    return c.tone(start_hz * rise ** np.minimum(c.t_S / (3 * decay_s), 1.5)) * c.decay(decay_s) * np.clip(c.t_S / 0.004, 0, 1)


def _clapping(c: Canvas, centre_hz: float, rate_hz: float, decay_s: float) -> Wave:
    return c.noise(centre_hz, 0.45) * (c.strokes(rate_hz, 0.15, decay_s) + 0.25 * c.strokes(1.9 * rate_hz, 0.9, decay_s))


def _horn(c: Canvas, pitch_hz: float, ratio: float, brightness: float, length_s: float) -> Wave:
    shape_S = np.clip(c.t_S / 0.02, 0, 1) * np.clip((length_s - c.t_S) / 0.03, 0, 1)
    harmonics = {k: brightness ** (k - 1) for k in range(1, 13)}
    return shape_S * (c.tone(pitch_hz, harmonics) + c.tone(pitch_hz * ratio, harmonics))


@dataclass(frozen=True)
class Kind:
    """A kind of sound.

    `answer` is its name in a sentence. A `stroke` is one short blow that can be counted; the others go on as long as asked.
    """

    answer: str
    synth: Callable[..., Wave]
    stroke: bool
    ranges: dict[str, Range]


def _kind(answer: str, synth: Callable[..., Wave], stroke: bool = False, **ranges: tuple[float, float]) -> Kind:
    return Kind(answer, synth, stroke, {name: Range(*interval) for name, interval in ranges.items()})


KINDS: dict[str, Kind] = {
    "bell": _kind("a bell", _bell, True, pitch_hz=(500, 1100), decay_s=(0.2, 0.5), strike=(0.4, 0.9)),
    "bird": _kind("a bird", _bird, centre_hz=(3000, 4800), sweep_ratio=(1.2, 1.7), trill_rate_hz=(9, 18)),
    "clapping": _kind("clapping", _clapping, centre_hz=(1000, 2000), rate_hz=(3.5, 6.5), decay_s=(0.012, 0.025)),
    "clock": _kind("a clock", _clock, rate_hz=(3, 6), ring_hz=(2200, 3800), decay_s=(0.003, 0.008)),
    "dog": _kind("a dog", _dog, True, pitch_hz=(260, 480), length_s=(0.18, 0.35), roughness=(0.2, 0.8)),
    "drop": _kind("a water drop", _drop, True, start_hz=(500, 900), rise=(1.8, 3.0), decay_s=(0.02, 0.045)),
    "drum": _kind("a drum", _drum, True, pitch_hz=(60, 130), decay_s=(0.08, 0.2), snap=(0.1, 0.4)),
    "engine": _kind("an engine", _engine, fire_hz=(28, 55), fall=(0.5, 1.2), roughness=(0.2, 0.8)),
    "guitar": _kind("a guitar", _guitar, True, pitch_hz=(150, 400), brightness=(0.4, 1.0), decay_s=(0.15, 0.4)),
    "horn": _kind(
        "a car horn", _horn, True, pitch_hz=(330, 480), ratio=(1.18, 1.3), brightness=(0.7, 0.88), length_s=(0.25, 0.5)
    ),
    "rain": _kind("rain", _rain, centre_hz=(2000, 4500), octaves=(0.9, 1.6), drops_hz=(10, 60)),
    "siren": _kind(
        "a siren", _siren, low_hz=(500, 800), sweep_ratio=(1.6, 2.3), sweep_rate_hz=(1.5, 3.0), brightness=(0.25, 0.55)
    ),
    "telephone": _kind("a telephone", _telephone, pitch_hz=(900, 1500), ratio=(1.18, 1.35), warble_hz=(12, 22)),
    "whistle": _kind(
        "a whistle", _whistle, True, pitch_hz=(1100, 2400), vibrato_hz=(4, 8), length_s=(0.25, 0.5), breath=(0.02, 0.15)
    ),
}


def cell_split(cell: int) -> Split:
    """Say to which split a cell of a parameter's range belongs."""
    return "test" if cell % 3 == 2 else "train"


def draw(kind: str, split: Split, rng: np.random.Generator, duration_s: float = 1.5) -> SoundParams:
    """Draw a source of a split.

    Args:
        kind: A key of `KINDS`.
        split: Whose cells every parameter comes from.
        rng: Generator that the item owns.
        duration_s: The longest the sound may last.
    """
    cells = [cell for cell in range(NUM_CELLS) if cell_split(cell) == split]
    values = {}
    for name, interval in KINDS[kind].ranges.items():
        place = cells[int(rng.integers(len(cells)))] + rng.uniform(CELL_MARGIN, 1 - CELL_MARGIN)
        values[name] = interval.value(place / NUM_CELLS)
    return SoundParams(values=values, duration_s=duration_s, seed=int(rng.integers(2**31)))


def render(kind: str, params: SoundParams, sampling_rate_hz: int) -> npt.NDArray[np.float32]:
    """Render one sound.

    Args:
        kind: A key of `KINDS`.
        params: All parameters of the kind, the longest duration in seconds and the seed of its noise.
        sampling_rate_hz: Samples a second.

    Returns:
        Mono float32 (S,), peak `PEAK`, faded at both ends, cut where it has died away: at most `duration_s` long.

    Raises:
        PalError: The kind is unknown, a parameter is missing or unknown, or the rate is below `MIN_RATE_HZ`.
    """
    if kind not in KINDS:
        raise PalError(f"unknown kind of sound {kind!r}; known are {', '.join(KINDS)}")
    spec = KINDS[kind]
    if set(params.values) != set(spec.ranges):
        raise PalError(f"{kind!r} takes the parameters {sorted(spec.ranges)}, got {sorted(params.values)}")
    if sampling_rate_hz < MIN_RATE_HZ:
        raise PalError(f"sounds are rendered at {MIN_RATE_HZ} Hz or more, got {sampling_rate_hz}; render there and resample")
    # A sound with a length of its own is silent after it: nothing to compute there.
    duration_s = min(params.duration_s, params.values.get("length_s", params.duration_s))
    num_samples = round(duration_s * sampling_rate_hz)
    canvas = Canvas(num_samples, sampling_rate_hz, np.random.default_rng(params.seed))
    wave_S = spec.synth(canvas, **params.values)
    wave_S = wave_S / np.max(np.abs(wave_S))
    audible = np.flatnonzero(np.abs(wave_S) > 10 ** (_TAIL_DB / 20))
    wave_S = wave_S[: audible[-1] + 1]
    fade_in, fade_out = (min(round(s * sampling_rate_hz), len(wave_S) // 2) for s in (_FADE_IN_S, _FADE_OUT_S))
    wave_S[:fade_in] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(fade_in) / fade_in)
    wave_S[len(wave_S) - fade_out :] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(fade_out) + 1) / fade_out)
    return np.asarray(PEAK * wave_S / np.max(np.abs(wave_S)), dtype=np.float32)
