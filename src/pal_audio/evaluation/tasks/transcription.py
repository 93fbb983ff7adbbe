"""Speech to text: LibriSpeech, and any manifest whose answers are transcripts.

Both sides are normalised before they are compared.
"""

from __future__ import annotations

from pal_audio.data.importers.librispeech import LIBRISPEECH
from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Place, Task, importer_items, manifest_items

_PROMPT = "Transcribe the speech."


def _librispeech(example: Example) -> Item:
    return Item.of(
        example,
        truth=[example.answer or ""],
        source=str(example.meta["speaker"]),  # utterances of one speaker are no independent draws
        groups={"subset": str(example.meta["subset"])},
    )


def _own(example: Example) -> Item:
    if not example.answer:
        raise PalError(f"{example.id}: no transcript; it is the assistant's message")
    return Item.of(example, truth=[example.answer])


def _from_manifest(place: Place) -> list[Item]:
    return manifest_items(place, _own)


TASKS = (
    Task("librispeech", "transcribe", LIBRISPEECH.needs, LIBRISPEECH.archives,
         lambda place: importer_items(LIBRISPEECH, place.root, place.split, _librispeech), ("test", "val"), prompt=_PROMPT,
         max_new_tokens=256, normaliser="english"),
    Task("transcription", "transcribe", "a manifest (.jsonl) whose answers are transcripts", "your own", _from_manifest, (ALL,),
         max_new_tokens=256, takes_file=True),
)  # fmt: skip
