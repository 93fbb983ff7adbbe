"""Captions: AudioCaps, Clotho, and any manifest whose examples hold `meta["references"]`.

Every clip is asked once and judged against all its references. IDF comes from the references of the whole set, so a part of it
(`--limit`) gives another number.
"""

from __future__ import annotations

from pal_audio.data.importers.audiocaps import AUDIOCAPS
from pal_audio.data.importers.base import CAPTION_WORDINGS, Importer
from pal_audio.data.importers.clotho import CLOTHO
from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Place, Task, importer_items, manifest_items


def _captioned(example: Example) -> Item:
    references = example.meta.get("references") or ([example.answer] if example.answer else [])
    if not references or not all(isinstance(reference, str) and reference.strip() for reference in references):
        raise PalError(f"{example.id}: no references to judge a caption by; write them as meta.references, or as the answer")
    return Item.of(example, truth=references)


def _task(importer: Importer) -> Task:
    return Task(
        importer.name,
        "caption",
        importer.needs,
        importer.archives,
        lambda place: importer_items(importer, place.root, place.split, _captioned),
        ("test", "val"),
        prompt=CAPTION_WORDINGS[0],
        max_new_tokens=64,
    )


def _from_manifest(place: Place) -> list[Item]:
    return manifest_items(place, _captioned)


TASKS = (
    _task(AUDIOCAPS),
    _task(CLOTHO),
    Task("captions", "caption", "a manifest (.jsonl) with meta.references or an answer", "your own", _from_manifest, (ALL,),
         max_new_tokens=64, takes_file=True),
)  # fmt: skip
