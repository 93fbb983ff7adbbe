"""What a caller asks for: the checked arguments of one call, the limits, and the errors that speak of its source."""

import math
import numbers
import sys
from dataclasses import dataclass
from typing import NoReturn

from pal_audio.errors import PalError

MAX_SECONDS = 3600.0
MAX_BYTES = 2**30  # an hour of 48 kHz stereo at 24 bits fits
MAX_CHANNELS = 64  # seventh-order ambisonics
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000


class AudioError(PalError):
    """A source is not usable audio, or an argument of `load_audio` is wrong."""


@dataclass(frozen=True)
class Request:
    """The checked arguments of one call, and the name under which errors speak of its source."""

    name: str
    sampling_rate_hz: int
    source_rate_hz: int | None
    start_s: float
    end_s: float  # inf: to the end
    max_seconds: float
    max_bytes: int
    max_channels: int

    def __post_init__(self) -> None:
        rates, limits = (MIN_RATE_HZ, MAX_RATE_HZ), (1.0, math.inf)
        ranges: dict[str, tuple[float, float]] = {"sampling_rate_hz": rates, "source_rate_hz": rates}
        ranges |= {"start_s": (0, 1e9), "end_s": (0, math.inf), "max_seconds": (1e-6, math.inf)}
        ranges |= {"max_bytes": limits, "max_channels": limits}
        for label, (low, high) in ranges.items():
            value = getattr(self, label)
            if value is None and label == "source_rate_hz":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
                self.fail(f"{label}={value!r} is out of range", f"give a number from {low:g} to {high:g}")
            if label.endswith("_hz") and float(value) % 1:
                self.fail(f"{label}={value!r} is not whole", "give a whole number of Hz")
        if self.end_s <= self.start_s:
            self.fail(f"end_s={self.end_s:g} is not after start_s={self.start_s:g}", "give a segment with end_s > start_s")

    def fail(self, defect: str, mend: str) -> NoReturn:
        raise AudioError(one_line(f"{self.name}: {defect}; {mend}")) from None

    def fail_start(self, length_s: float) -> NoReturn:
        self.fail(f"start_s={self.start_s:g} is not before its end at {length_s:.3f} s", "choose an earlier start_s")

    def check_format(self, rate_hz: float, num_channels: int) -> int:
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and rate_hz == int(rate_hz)):
            self.fail(f"its sampling rate is {rate_hz} Hz", f"rates are whole numbers from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
        if self.source_rate_hz not in (None, rate_hz):
            self.fail(f"its own rate is {rate_hz} Hz, source_rate_hz={self.source_rate_hz}", "leave source_rate_hz out")
        if num_channels < 1:
            self.fail("it has 0 channels", "give at least one")
        if num_channels > self.max_channels:
            self.fail(f"it has {num_channels} channels, max_channels={self.max_channels}", "mix it down or raise the limit")
        return int(rate_hz)

    def bounds(self, rate_hz: int) -> tuple[int, int]:
        """Samples [first, last) of the segment, at least one."""
        first = round(self.start_s * rate_hz)
        return first, sys.maxsize if math.isinf(self.end_s) else max(first + 1, round(self.end_s * rate_hz))


def one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
