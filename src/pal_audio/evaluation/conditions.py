"""What a model is given to hear in place of an item's own sound, so that the score says whether it listens.

    real       the sound
    shuffled   another item's sound, of another source
    muted      silence of the same length
    noise      white noise of the same length

The donor of a clip follows from the task's clips alone: all clips of a task in a random order of a fixed seed, each hearing the
next one of another source. So no clip keeps its own sound, and each is heard about once. Source: our choice.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from pal_audio.data.manifest import AudioPart
from pal_audio.evaluation.items import Item

Condition = Literal["real", "shuffled", "muted", "noise"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
_SEED = 17

Clip = tuple[AudioPart, ...]


def clip_key(clip: Sequence[AudioPart]) -> str:
    """A name for a stretch of sound, the same for equal stretches."""
    return json.dumps([[part.path, part.start_s, part.end_s] for part in clip])


def noise_seed(clip: Sequence[AudioPart]) -> int:
    """Seed of the noise in place of a clip; it does not depend on the folder that the clip lies in."""
    names = [[part.path.replace("\\", "/").rpartition("/")[2], part.start_s, part.end_s] for part in clip]
    return zlib.crc32(json.dumps(names).encode())


class Donors:
    """Which sound a clip is given under `shuffled`.

    Args:
        items: of one task.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        clips: dict[str, list[AudioPart]] = {}
        self._source_of: dict[str, str] = {}
        for item in items:
            for clip in item.clips:
                clips.setdefault(clip_key(clip), clip)
                self._source_of.setdefault(clip_key(clip), item.source)
        order = np.random.default_rng(_SEED).permutation(len(clips))
        keys = list(clips)
        self._order = [keys[int(number)] for number in order]
        self._place = {key: number for number, key in enumerate(self._order)}
        self._clips = clips

    @property
    def possible(self) -> bool:
        """False where all sound comes from one source: nothing can be exchanged."""
        return len(set(self._source_of.values())) > 1

    def of(self, clip: Sequence[AudioPart]) -> Iterator[list[AudioPart]]:
        """Donors of a clip, the first choice first; the next serves where one cannot be read."""
        key = clip_key(clip)
        start = self._place[key]
        for step in range(1, len(self._order)):
            other = self._order[(start + step) % len(self._order)]
            if self._source_of[other] != self._source_of[key]:
                yield self._clips[other]
