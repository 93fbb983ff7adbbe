"""Digits by espeak-ng: accents, both sexes by variants, two speeds, two pitches."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from benchmarks.lab.elsewhere.programs import called

from pal_audio.data.importers.recordings import DIGIT_WORDS
from pal_audio.errors import PalError

PROGRAM, PACKAGE = "espeak-ng", "espeak-ng"
ACCENTS = ("en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland")
VARIANTS = {"m3": "male", "m7": "male", "f2": "female", "f4": "female"}
WORDS_A_MINUTE = (130, 175)
PITCHES = (35, 65)
NUM_DIGITS = ((3, 5), (4, 6))


@dataclass(frozen=True)
class Utterance:
    """Digits in one breath.

    Attributes:
        digits: words.
        accent, variant: of espeak-ng.
        words_a_minute, pitch: of espeak-ng, 175 and 50 where nothing is said.
    """

    digits: tuple[str, ...]
    accent: str
    variant: str
    words_a_minute: int
    pitch: int

    @property
    def voice(self) -> str:
        return f"{self.accent}+{self.variant}"

    @property
    def name(self) -> str:
        return f"{self.accent}-{self.variant}-{self.words_a_minute}-{self.pitch}-{'-'.join(self.digits)}"

    def render(self, folder: Path) -> tuple[np.ndarray, int]:
        """Samples (S,) float64, and their rate in Hz; the folder holds a file on the way."""
        path = folder / "speech.wav"
        settings = ["-v", self.voice, "-s", str(self.words_a_minute), "-p", str(self.pitch), "-w", str(path)]
        called(PROGRAM, *settings, " ".join(self.digits))
        return soundfile.read(path)


def utterances() -> Iterator[Utterance]:
    """All that is said: each voice in half of the ways, and in each all digits and two strings."""
    rng = np.random.default_rng(0)
    ways = list(itertools.product(WORDS_A_MINUTE, PITCHES))
    for accent, (place, variant) in itertools.product(ACCENTS, enumerate(VARIANTS)):
        for (speed, pitch), lengths in zip(ways[place % 2 :: 2], NUM_DIGITS, strict=True):
            for digit in DIGIT_WORDS:
                yield Utterance((digit,), accent, variant, speed, pitch)
            for num in lengths:
                digits = tuple(DIGIT_WORDS[number] for number in rng.integers(len(DIGIT_WORDS), size=num))
                yield Utterance(digits, accent, variant, speed, pitch)


def version() -> str:
    """What the program says of itself; where its data lies says nothing of the sound."""
    return called(PROGRAM, "--version").partition("Data at")[0].strip()


def check_voices() -> None:
    """An accent or variant that is not there would be spoken by another in silence.

    Raises:
        PalError: naming it.
    """
    listed = {kind: _listed(kind) for kind in ("en", "variant")}
    for what, kind, wanted in (("accent", "en", ACCENTS), ("variant", "variant", [f"!v/{name}" for name in VARIANTS])):
        for name in wanted:
            if name not in listed[kind]:
                raise PalError(f"{PROGRAM} has no {what} {name}; install its data whole (Debian: espeak-ng-data)")


def _listed(kind: str) -> set[str]:
    return {word for line in called(PROGRAM, f"--voices={kind}").splitlines()[1:] for word in line.split()}
