"""Sound of the batches to come, read while a batch is asked: by worker processes where there are some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pal_audio.audio import AudioError
from pal_audio.data.manifest import AudioPart
from pal_audio.evaluation.conditions import Donors, clip_key
from pal_audio.evaluation.store import Batch

Ear = Callable[[Sequence[AudioPart]], Any]
Heard = dict[str, Any]
"""By `clip_key`, what was heard, or the error."""


@dataclass(frozen=True)
class HearAll:
    """Hears clips, each once, the unreadable ones too.

    Args:
        ear: reads the stretches of a clip, joined.
    """

    ear: Ear

    def __call__(self, clips: Sequence[Sequence[AudioPart]]) -> Heard:
        heard: Heard = {}
        for clip in clips:
            key = clip_key(clip)
            if key not in heard:
                try:
                    heard[key] = self.ear(clip)
                except AudioError as error:
                    heard[key] = error
        return heard


def clips_of(batch: Batch, donors: Donors) -> list[Sequence[AudioPart]]:
    """Clips that a batch will surely ask for: its own, and under `shuffled` the first donor of each."""
    clips: list[Sequence[AudioPart]] = [clip for item in batch.items if not item.fault for clip in item.clips]
    if "shuffled" in batch.task.conditions:
        clips += [donor for clip in list(clips) if (donor := next(donors.of(clip), None)) is not None]
    return clips
