"""`augment` of a mix: what changes training sounds as another voice, microphone or distance would; test sounds stay as they are.

Shape suffix: S samples. Source: speed after T. Ko et al., "Audio Augmentation for Speech Recognition" (2015), which moves pitch
and formants too, so that one speaker sounds like several; `filter` after "FilterAugment" (2022; arXiv 2110.03282), its linear
kind with bands of equal width; the rest is our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import soxr
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pal_audio.config import StrictConfig
from pal_audio.data.mixing.settings import Chance, LengthSpan, Span, as_pair, ordered
from pal_audio.errors import PalError

Wave = npt.NDArray[np.float32]
_PIVOT_HZ, _LOWEST_HZ = 1000.0, 50.0  # a tilt leaves the first alone, and is flat below the second
_MEL_HZ = 700.0

_Gain = Annotated[float, Field(ge=-60, le=60)]  # far beyond what any microphone does, and no number overflows
_Gains = Annotated[tuple[_Gain, _Gain], BeforeValidator(as_pair), AfterValidator(ordered)]
_Factors = Annotated[
    tuple[Annotated[float, Field(ge=0.5)], Annotated[float, Field(le=2)]], BeforeValidator(as_pair), AfterValidator(ordered)
]
_Order = Annotated[int, Field(ge=1, le=100)]


class _OfSounds(StrictConfig):
    """A change of single sounds.

    Attributes:
        chance: of each sound, or of those that are changed alike.
        categories: of the sounds that are changed; None for all.
    """

    chance: Chance = 1.0
    categories: Annotated[list[str], Field(min_length=1)] | None = None

    def changes(self, category: str) -> bool:
        """Whether sounds of a category may be changed."""
        return self.categories is None or category in self.categories


class Speed(_OfSounds):
    """Sounds are played faster or slower, pitch and all; those of one string of digits, or of two notes, alike.

    Attributes:
        factor: 2 is twice as fast, an octave higher.
        factor_of: of categories that have another.
    """

    factor: _Factors = (0.9, 1.1)
    factor_of: dict[str, _Factors] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Speed:
        if unchanged := [category for category in self.factor_of if not self.changes(category)]:
            raise PalError(f"factor_of names {', '.join(unchanged)}, which is none of categories {self.categories}")
        return self

    def at(self, share: float, category: str) -> float:
        """The factor that lies so far, from 0 to 1, between the lowest and the highest of a category."""
        low, high = self.factor_of.get(category, self.factor)
        return low + (high - low) * share


class Tilt(_OfSounds):
    """Sounds get brighter or duller by so much an octave; the words of one string alike.

    Attributes:
        db_per_octave: above 0 is brighter.
    """

    db_per_octave: _Gains = (-3.0, 3.0)


class Filter(_OfSounds):
    """Sounds go through a filter of random gains, linear in dB between its points; the words of one string through the same.

    Attributes:
        gain_db: of each point.
        points: that many, evenly spaced in mel from 0 Hz to half the sampling rate.
    """

    gain_db: _Gains = (-6.0, 6.0)
    points: int = Field(default=5, ge=2, le=64)


class LowPass(StrictConfig):
    """A whole scene loses what lies above a frequency, as on the telephone.

    Attributes:
        cutoff_hz: where it is 3 dB down.
        order: of the Butterworth filter, each from lowest to highest as often: 8 takes 48 dB an octave, 64 all but at once, as
            where sound was sampled at a lower rate.
        chance: of each scene.
    """

    cutoff_hz: LengthSpan = (3400.0, 7000.0)
    order: Annotated[tuple[_Order, _Order], BeforeValidator(as_pair), AfterValidator(ordered)] = (8, 8)
    chance: Chance = 0.2


class Augment(StrictConfig):
    """What happens to training sounds; None for never.

    Attributes:
        speed, tilt, filter: of single sounds, those behind included.
        low_pass: of whole scenes, after the noise.
        level_db: of whole scenes, after all else.
    """

    speed: Speed | None = None
    tilt: Tilt | None = None
    filter: Filter | None = None
    low_pass: LowPass | None = None
    level_db: Span | None = None

    def of_sounds(self, rng: np.random.Generator, categories: Sequence[str], alike: bool) -> list[SoundChange]:
        """A change for each sound of these categories, or one draw for all. Draws do not depend on whose sounds are changed."""
        drawn = []
        for _ in categories[:1] if alike else categories:
            share = rng.uniform() if self.speed and rng.uniform() < self.speed.chance else None
            tilt = rng.uniform(*self.tilt.db_per_octave) if self.tilt and rng.uniform() < self.tilt.chance else 0.0
            filtered = self.filter if self.filter and rng.uniform() < self.filter.chance else None
            gains = tuple(map(float, rng.uniform(*filtered.gain_db, filtered.points))) if filtered else ()
            drawn.append((share, tilt, gains))
        changes = []
        for category, (share, tilt, gains) in zip(categories, drawn * len(categories) if alike else drawn, strict=True):
            speed = self.speed.at(share, category) if self.speed and share is not None and self.speed.changes(category) else 1.0
            tilt_db = tilt if self.tilt and self.tilt.changes(category) else 0.0
            gains_db = gains if self.filter and self.filter.changes(category) else ()
            changes.append(SoundChange(speed, tilt_db, gains_db))
        return changes

    @property
    def named(self) -> dict[str, list[str]]:
        """Categories that are named, by the keys that name them."""
        changes: dict[str, _OfSounds | None] = {"speed": self.speed, "tilt": self.tilt, "filter": self.filter}
        named = {f"{key}.categories": change.categories for key, change in changes.items() if change and change.categories}
        return named | ({"speed.factor_of": list(self.speed.factor_of)} if self.speed else {})

    def of_scene(self, rng: np.random.Generator) -> dict[str, float]:
        """What happens to a whole scene: `low_pass_hz` with its `low_pass_order`, and `level_db`, or none of them."""
        said = {}
        if self.low_pass is not None and rng.uniform() < self.low_pass.chance:
            said["low_pass_hz"] = rng.uniform(*self.low_pass.cutoff_hz)
            said["low_pass_order"] = int(rng.integers(*self.low_pass.order, endpoint=True))
        if self.level_db is not None:
            said["level_db"] = rng.uniform(*self.level_db)
        return said


@dataclass(frozen=True)
class SoundChange:
    """What happens to one sound; as it stands, nothing."""

    speed: float = 1.0
    tilt_db: float = 0.0
    gains_db: tuple[float, ...] = ()

    def __call__(self, wav_S: Wave, rate_hz: int) -> Wave:
        """The changed sound; at `speed` s it is 1/s as long."""
        if self.speed != 1:
            wav_S = np.asarray(soxr.resample(wav_S, rate_hz * self.speed, rate_hz), dtype=np.float32)
        if self.tilt_db != 0 or self.gains_db:
            wav_S = _filtered(wav_S, lambda hz: 10 ** (self._gain_db(hz) / 20), rate_hz)
        return wav_S

    def _gain_db(self, hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Of tilt and filter at frequencies from 0 to the highest."""
        gain_db = self.tilt_db * np.log2(np.maximum(hz, _LOWEST_HZ) / _PIVOT_HZ)
        if self.gains_db:
            mel = np.log1p(hz / _MEL_HZ)
            gain_db += np.interp(mel, np.linspace(0, mel[-1], len(self.gains_db)), self.gains_db)
        return np.asarray(gain_db)

    def meta(self) -> dict[str, Any]:
        """What a manifest says of it."""
        said: dict[str, Any] = {} if self.speed == 1 else {"speed": round(self.speed, 4)}
        said |= {"tilt_db": round(self.tilt_db, 3)} if self.tilt_db != 0 else {}
        return said | ({"gains_db": [round(gain, 2) for gain in self.gains_db]} if self.gains_db else {})

    @property
    def semitones(self) -> float:
        """By how much it moves the pitch."""
        return float(12 * np.log2(self.speed))


NO_CHANGE = SoundChange()


def low_passed(wav_S: npt.NDArray[np.float64], cutoff_hz: float, order: int, rate_hz: int) -> npt.NDArray[np.float64]:
    """What is left of a scene below a frequency; no phase is moved."""
    with np.errstate(over="ignore"):  # far above, infinity: nothing passes
        return np.asarray(_filtered(wav_S, lambda hz: 1 / np.sqrt(1 + (hz / cutoff_hz) ** (2 * order)), rate_hz))


def _filtered(wav_S: npt.NDArray[Any], gain_of: Callable[[Any], Any], rate_hz: int) -> npt.NDArray[Any]:
    num_fft = 1 << (len(wav_S) + rate_hz // 10).bit_length()  # room for what rings on (steep below 300 Hz: most of it)
    spectrum = np.fft.rfft(wav_S, num_fft) * gain_of(np.fft.rfftfreq(num_fft, 1 / rate_hz))
    filtered_S: npt.NDArray[Any] = np.fft.irfft(spectrum, num_fft)[: len(wav_S)].astype(wav_S.dtype)
    return filtered_S
