"""How scenes sound: the `scene` of a mix, which a task may change in part."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pal_audio.config import StrictConfig
from pal_audio.errors import PalError

NOISES = ("white", "pink")
MAX_EVENTS = 10
MAX_DIGITS = 30


def as_pair(value: Any) -> Any:
    """One number stands for a lowest and a highest."""
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def ordered(span: tuple[float, float]) -> tuple[float, float]:
    """A pair, refused where its lowest is above its highest."""
    if not span[0] <= span[1]:
        raise PalError(f"gives lowest and highest, got {list(span)}")
    return span


Finite = Annotated[float, Field(allow_inf_nan=False)]
Unsigned = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Span = Annotated[tuple[Finite, Finite], BeforeValidator(as_pair), AfterValidator(ordered)]
TimeSpan = Annotated[tuple[Unsigned, Unsigned], BeforeValidator(as_pair), AfterValidator(ordered)]
LengthSpan = Annotated[tuple[Positive, Positive], BeforeValidator(as_pair), AfterValidator(ordered)]
CountSpan = Annotated[tuple[int, int], BeforeValidator(as_pair), AfterValidator(ordered)]
ShareSpan = Annotated[tuple[Positive, Annotated[float, Field(lt=1)]], BeforeValidator(as_pair), AfterValidator(ordered)]
Chance = Annotated[float, Field(gt=0, le=1)]


class Overlap(StrictConfig):
    """Two neighbours sound together; never three.

    Attributes:
        share: of the shorter one's length that is covered.
        chance: of each two neighbours that are not yet of a pair.
    """

    share: ShareSpan = (0.3, 0.7)
    chance: Chance = 0.5


class Background(StrictConfig):
    """What sounds behind the events, from the first sample to the last.

    Attributes:
        sound: `white`, `pink`, a category of sources, or a list of them of which each is equally frequent.
        snr_db: power of the events, over the time in which any sounds, to that of the background over all time.
        chance: of having it.
    """

    sound: Annotated[
        list[str],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1),
    ]
    snr_db: Span = (10.0, 30.0)
    chance: Chance = 1.0

    @property
    def categories(self) -> list[str]:
        """Those of `sound` that are no noise."""
        return [name for name in self.sound if name not in NOISES]


class Reverb(StrictConfig):
    """The direct sound, then white noise that decays exponentially.

    Attributes:
        rt60_s: time in which the tail falls by 60 dB.
        drr_db: energy of the direct sound to that of the tail.
        chance: of having it.
    """

    rt60_s: Annotated[
        tuple[Annotated[float, Field(ge=0.05)], Annotated[float, Field(le=5)]], BeforeValidator(as_pair), AfterValidator(ordered)
    ] = (0.2, 0.8)
    drr_db: Span = (0.0, 12.0)
    chance: Chance = 1.0


class SceneConfig(StrictConfig):
    """A scene. Every pair is a lowest and a highest value, between which each item draws its own; one number stands for both.

    Attributes:
        seconds: whole length, at most 60.
        num_events: sounds one after another.
        event_s: a longer recording is cut to a stretch of this length, which begins where it sounds; digits are never cut.
        gain_db: of each event. At 0 dB its RMS is `compose.EVENT_RMS`.
        lead_s, gap_s, tail_s: silence before, between and after events. The tail takes what is left where all are longest.
        trim: chance that silence before and after the events is cut off, as in a recording of one sound; None for never. Not for
            tasks with several events, as a scene's length would tell how many.
        overlap: None for never.
        num_digits, digit_gap_s: of a string of spoken digits.
        interval: semitones between two notes.
        background, reverb: None for none.
    """

    seconds: Annotated[
        tuple[Annotated[float, Field(ge=0.5)], Annotated[float, Field(le=60)]], BeforeValidator(as_pair), AfterValidator(ordered)
    ] = (10.0, 10.0)
    num_events: CountSpan = (1, 4)
    event_s: LengthSpan = (0.6, 2.5)
    gain_db: Span = (-12.0, 0.0)
    lead_s: TimeSpan = (0.1, 60.0)
    gap_s: TimeSpan = (0.2, 60.0)
    tail_s: TimeSpan = (0.1, 60.0)
    trim: Chance | None = None
    overlap: Overlap | None = None
    num_digits: CountSpan = (3, 10)
    digit_gap_s: TimeSpan = (0.05, 0.3)
    interval: LengthSpan = (1.0, 24.0)
    background: Background | None = None
    reverb: Reverb | None = None

    @model_validator(mode="after")
    def _possible(self) -> SceneConfig:
        for name, highest in (("num_events", MAX_EVENTS), ("num_digits", MAX_DIGITS)):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= highest:
                raise PalError(f"{name}: {low} to {high} is out of range; give 1 to {highest}")
        if self.gain_db[0] < -40 or self.gain_db[1] > 20:
            raise PalError(f"gain_db: {list(self.gain_db)} is out of range; give -40 to 20")
        return self

    def check_fits(self, num_events: int) -> None:
        """Raise PalError where so many events cannot stand side by side in the shortest scene."""
        silence_s = self.lead_s[0] + self.tail_s[0] + (num_events - 1) * self.gap_s[0]
        needed_s = silence_s + num_events * self.event_s[0]
        if needed_s > self.seconds[0] + 1e-9:
            raise PalError(
                f"{num_events} events of {self.event_s[0]:g} s and the shortest silences take {needed_s:.2f} s, more than "
                f"the {self.seconds[0]:g} s of a scene; raise seconds, or lower num_events, event_s, lead_s, gap_s or tail_s"
            )
