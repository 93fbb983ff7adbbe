"""A folder as `benchmarks.lab elsewhere` writes it, of tones instead of rendered sound."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benchmarks.lab.elsewhere import folder
from benchmarks.lab.elsewhere.folder import TASKS, Made

MADE_BY = {"speech": "no one", "voices": ["low", "high"], "notes": "no synthesizer", "soundfont": "tones"}


def tones(digits: int = 2, instruments: tuple[str, ...] = ("piano", "bass guitar"), level: float = 0.3) -> Iterator[Made]:
    """Each digit, a string and a note, in two voices."""
    single, string, note = TASKS
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    time_s = np.arange(11_025) / 22_050

    def tone(number: int) -> np.ndarray:
        return level * np.sin(2 * np.pi * (200 + 30 * number) * time_s)

    for place, voice in enumerate(("low", "high")):
        for number in range(digits):
            yield Made(
                single, f"voices/{voice}-{number}", words[number], tone(number + 9 * place), 22_050, [voice], {"voice": voice}
            )
        text = " ".join(words[number] for number in range(3 + place))
        yield Made(string, f"voices/{voice}-string", text, np.tile(tone(place), 3), 22_050, [voice], {"voice": voice})
        for number, label in enumerate(instruments):
            yield Made(note, f"notes/{label.replace(' ', '_')}-{place}{number}", label, tone(20 + number + place), 22_050, [], {})


def make_elsewhere(path: Path, **options: object) -> Path:
    folder.write(path, tones(**options), MADE_BY)  # type: ignore[arg-type]
    return path
