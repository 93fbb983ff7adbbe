"""Free Spoken Digits: which digit is said (`fsdd`), and strings of digits to write down (`fsdd-strings`).

A string is three to five recordings of one speaker and split, joined with a pause; which, a fixed seed draws. `test` is the
official part (index 0-4), `val` index 45-49. Source of the strings: our choice.
"""

from __future__ import annotations

import numpy as np

from pal_audio.data.importers.base import asked
from pal_audio.data.importers.fsdd import FSDD
from pal_audio.data.importers.recordings import DIGIT_WORDINGS, DIGIT_WORDS
from pal_audio.data.manifest import AudioPart, Example
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import Place, Task, importer_items, with_sound

NUM_STRINGS = 200
LENGTHS = (3, 4, 5)
_SPLITS = ("test", "val", "train")
_SEED = 11


def _one(example: Example) -> Item:
    groups = {"speaker": str(example.meta["speaker"])}
    return Item.of(example, truth=[example.answer or ""], choices=list(DIGIT_WORDS), groups=groups)


def _digits(place: Place) -> list[Item]:
    return importer_items(FSDD, place.root, place.split, _one)


def _strings(place: Place) -> list[Item]:
    split = place.split
    by_speaker: dict[str, list[Item]] = {}
    for item in _digits(place):
        by_speaker.setdefault(item.groups["speaker"], []).append(item)
    if not by_speaker:
        raise PalError(f"fsdd-strings: nothing of split {split!r} in {place.root}")
    rng = np.random.default_rng(_SEED)
    speakers = sorted(by_speaker)
    strings = []
    for number in range(NUM_STRINGS):
        speaker = speakers[number % len(speakers)]
        length = LENGTHS[number // len(speakers) % len(LENGTHS)]
        chosen = [by_speaker[speaker][int(i)] for i in rng.integers(len(by_speaker[speaker]), size=length)]
        parts: list[AudioPart] = [item.clips[0][0] for item in chosen]
        said = " ".join(item.truth[0] for item in chosen)
        example = asked(f"digits-{split}-{number:03d}", parts[:1], "Transcribe the speech.", said, "transcribe")
        groups = {"speaker": speaker, "length": str(length)}
        strings.append(with_sound(Item.of(example, truth=[said], clips=[parts], source=example.id, groups=groups)))
    return strings


TASKS = (
    Task("fsdd", "classify", FSDD.needs, FSDD.archives, _digits, _SPLITS, ("rank", "generate"), DIGIT_WORDINGS[0]),
    Task("fsdd-strings", "transcribe", FSDD.needs, FSDD.archives, _strings, _SPLITS, prompt="Transcribe the speech."),
)
