"""Composed scenes as text: what a language model reads in the place of the sound.

    scene of 8.0 s: 0.4-1.9 dog; 1.5-3.2 piano at 62; behind it rain

Times are in seconds. Noise and rooms are not told, since no question asks about them. Source: our choice.
"""

from __future__ import annotations

from pal_audio.data.manifest import AudioPart, Example, TextPart
from pal_audio.data.mixing.sounding import sounding
from pal_audio.errors import PalError


def told(example: Example) -> str:
    """The scene of an example.

    Raises:
        PalError: `meta` is not that of a composed scene.
    """
    sounds = sounding(example)
    parts = [
        f"{one.onset_s:.1f}-{one.offset_s:.1f} {one.label}" + ("" if one.pitch is None else f" at {one.pitch:.0f}")
        for one in sounds
        if not one.behind
    ]
    parts += [f"behind it {one.label}" for one in sounds if one.behind]
    return f"scene of {float(example.meta['seconds']):.1f} s: " + "; ".join(parts)


def as_text(example: Example) -> Example:
    """The example with its clip replaced by the scene as text, and a line break after it.

    Raises:
        PalError: it has not exactly one clip, or `meta` is not that of a composed scene.
    """
    if len(example.audio) != 1:
        raise PalError(f"example {example.id!r} has {len(example.audio)} clips; a scene that is told as text has one")
    part = TextPart(text=told(example) + "\n")
    messages = [
        message
        if not any(isinstance(each, AudioPart) for each in message.parts)
        else message.model_copy(update={"content": [part if isinstance(each, AudioPart) else each for each in message.parts]})
        for message in example.messages
    ]
    return example.model_copy(update={"messages": messages})
