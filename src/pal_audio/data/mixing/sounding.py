"""What sounds when in a composed scene, read back from its `meta`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pal_audio.data.manifest import Example
from pal_audio.errors import PalError


@dataclass(frozen=True)
class Sounding:
    """A sound of a scene, in seconds; `pitch` is a note's MIDI number, `behind` says that it is the background."""

    label: str
    category: str
    onset_s: float
    offset_s: float
    pitch: float | None = None
    behind: bool = False


def sounding(example: Example, categories: Collection[str] | None = None) -> list[Sounding]:
    """The sounds of a scene of `type: mix`, in the order of their onsets; one behind the others sounds from end to end.

    Args:
        example: its `meta` has `events` and `seconds`.
        categories: those to take, None for all.

    Raises:
        PalError: `meta` is not that of a composed scene.
    """
    meta = example.meta
    try:
        found = [_event(event) for event in meta["events"]]
        if "background_category" in meta:
            found.append(Sounding(meta["background"], meta["background_category"], 0.0, float(meta["seconds"]), behind=True))
    except (KeyError, TypeError, ValueError) as error:
        raise PalError(f"example {example.id!r}: its meta is not that of a scene of `type: mix` ({error!r})") from None
    return sorted((one for one in found if categories is None or one.category in categories), key=lambda one: one.onset_s)


def _event(event: dict[str, Any]) -> Sounding:
    times = float(event["onset_s"]), float(event["offset_s"])
    return Sounding(event["label"], event["category"], *times, None if event.get("pitch") is None else float(event["pitch"]))
